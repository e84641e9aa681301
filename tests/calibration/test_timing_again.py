"""Widths are timed again before a study is refused because no policy is fast enough."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import optuna
import pytest

from effllava_optuna.calibration import calibration_run
from effllava_optuna.config.loading import load_config
from effllava_optuna.errors import ConfigError, ModelError, UnreachableError
from effllava_optuna.search.runner import begin
from tests.fixed_latency import fixed_table
from tests.study_fixtures import url_of_study, write_tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from effllava_optuna.objectives import LatencyTable

_STAGE = "timing widths again, because none is fast enough"


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[LatencyTable]]:
    """Let each timing have the given share of the savings of the fixed table; collect them."""

    def use(*shares: float) -> list[LatencyTable]:
        tables: list[LatencyTable] = []

        def measure(*arguments: Any, **options: Any) -> LatencyTable:
            table = fixed_table(*arguments, **options)
            saved = {
                phase: {
                    component: {width: shares[len(tables)] * ms for width, ms in row.items()}
                    for component, row in rows.items()
                }
                for phase, rows in table.saved_ms.items()
            }
            tables.append(replace(table, saved_ms=saved))
            return tables[-1]

        monkeypatch.setattr(calibration_run, "measure_table", measure)
        return tables

    return use


def test_widths_are_timed_again_if_none_seems_to_be_fast_enough(
    timings: Callable[..., list[LatencyTable]], checkpoint: Path, tmp_path: Path
) -> None:
    tables, stages = timings(0.1, 1.0), []
    file = write_tiny(checkpoint, tmp_path)
    config = load_config(file, ("search.speedup=1.5",))
    with begin(config, url_of_study(file), lambda *stage: stages.append(stage[0])) as session:
        stored = session.evaluator.calibration.latency
    assert len(tables) == 2
    assert stored.saved_ms == tables[1].saved_ms
    assert stages.count(_STAGE) == 1


def test_a_refusal_says_what_both_timings_could_reach_and_keeps_nothing(
    timings: Callable[..., list[LatencyTable]], checkpoint: Path, tmp_path: Path
) -> None:
    timings(0.1, 0.2)
    file = write_tiny(checkpoint, tmp_path)
    config = load_config(file, ("search.speedup=1.5",))
    url = url_of_study(file)
    twice = r"1.5: the narrowest .* timed twice: 1\.\d+ times \(mean error .* and 1\.\d+ times \("
    with (
        pytest.raises(UnreachableError, match=twice) as refused,
        begin(config, url),
    ):
        pass
    assert refused.value.hint.endswith("If another program was running, try again without it.")
    assert optuna.get_all_study_names(url) == []


def test_a_dense_model_that_is_fast_enough_is_not_timed_again(
    timings: Callable[..., list[LatencyTable]], checkpoint: Path, tmp_path: Path
) -> None:
    tables = timings(1.0)
    file = write_tiny(checkpoint, tmp_path)
    config = load_config(file, ("search.latency_ms=1e9",))
    with (
        pytest.raises(ConfigError, match="the dense model takes"),
        begin(config, url_of_study(file)),
    ):
        pass
    assert len(tables) == 1


def test_tables_that_do_not_fit_are_refused_before_widths_are_timed(
    timings: Callable[..., list[LatencyTable]], checkpoint: Path, tmp_path: Path
) -> None:
    """With a corrected study file the same name can be used: nothing is kept."""
    tables = timings(1.0)
    file = write_tiny(checkpoint, tmp_path)
    url = url_of_study(file)
    with (
        pytest.raises(ModelError, match=r"pruning\.table_gb allows 1e-05"),
        begin(load_config(file, ("pruning.table_gb=1e-5",)), url),
    ):
        pass
    assert tables == []
    assert optuna.get_all_study_names(url) == []
    with begin(load_config(file), url) as session:
        assert session.study.study_name == "tiny"
