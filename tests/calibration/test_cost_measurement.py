"""The timing that `check --deep` prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from effllava_optuna.calibration.cost_measurement import measure_dense_latency
from effllava_optuna.config.task_factory import make_task
from effllava_optuna.objectives import Stopwatch
from effllava_optuna.study import load_config
from effllava_optuna.surgery import LoadedModel, load

QUICKSTART = Path(__file__).parents[2] / "studies" / "quickstart.toml"


@pytest.fixture(scope="module")
def digits() -> LoadedModel:
    return load("digits-vlm", device="cpu")


@pytest.mark.parametrize(("new_tokens", "expected"), [(1, 3.0 + 40.0), (5, 3.0 + 40.0 + 4 * 2.0)])
def test_the_fastest_run_of_each_phase_counts(
    new_tokens: int, expected: float, digits: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    visions, prefills, decodes = [5.0, 3.0], [40.0, 50.0], [2.0, 7.0]

    def decoder(stopwatch: Stopwatch, _: LoadedModel) -> dict[str, float]:
        decode = {"decode": decodes.pop()} if stopwatch.workload.new_tokens > 1 else {}
        return {"prefill": prefills.pop()} | decode

    monkeypatch.setattr(Stopwatch, "vision", lambda _: {"vision": visions.pop()})
    monkeypatch.setattr(Stopwatch, "decoder", decoder)
    changes = ("latency.batch=2", f"latency.new_tokens={new_tokens}", "task.proxy=8")
    config = load_config(QUICKSTART, changes)
    assert measure_dense_latency(config, digits, make_task(config)) == expected


def test_the_workload_is_that_of_the_study(
    digits: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []
    measured = Stopwatch.decoder

    def decoder(stopwatch: Stopwatch, network: LoadedModel) -> dict[str, float]:
        timed.append((stopwatch.workload.batch, len(stopwatch.inputs["input_ids"])))
        return measured(stopwatch, network)

    monkeypatch.setattr(Stopwatch, "decoder", decoder)
    config = load_config(QUICKSTART, ("latency.batch=3", "task.proxy=8"))
    assert measure_dense_latency(config, digits, make_task(config)) > 0
    assert set(timed) == {(3, 3)}
