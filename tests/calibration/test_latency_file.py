"""Latency tables in a file are used again where everything they depend on is the same."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from effllava_optuna.calibration.calibration_run import calibrate
from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.calibration.latency_file import (
    facts_of,
    find_table,
    restored_table,
    store_table,
)
from effllava_optuna.config.loading import load_config
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.errors import StudyError
from effllava_optuna.objectives import LatencyTable
from effllava_optuna.policy import ComponentId
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.studies import (
    config_of,
    create_study,
    first_difference,
    update_paths,
)
from tests.study_fixtures import invoke, write_tiny

if TYPE_CHECKING:
    from pathlib import Path

    from effllava_optuna.surgery import LoadedModel

COMPONENT = ComponentId("language.00.mlp")
TABLE = LatencyTable(
    new_tokens=2,
    vision_ms=1.0,
    dense_ms={"prefill": 10.0, "decode": 1.0},
    saved_ms={phase: {COMPONENT: {4: -1.0, 8: 0.0}} for phase in ("prefill", "decode")},
    friendly={COMPONENT: (4, 8)},
    errors=(0.1, -0.3),
    spread=None,
    factor={"prefill": 0.9, "decode": 1.0},
    rounds=3,
    launched=("decode",),
    origin={"device": "a", "new_tokens": 2},
)
WIDTHS = {COMPONENT: (4, 8)}


def test_a_table_comes_back_from_json_as_it_was() -> None:
    assert TABLE.error == pytest.approx(0.2)
    document = json.loads(json.dumps(facts_of(TABLE), allow_nan=False))
    assert document["error"] == pytest.approx(0.2)
    assert restored_table(document) == TABLE


def test_a_file_keeps_one_table_of_each_origin(tmp_path: Path) -> None:
    place = tmp_path / "tables.json"
    other = replace(TABLE, origin={"device": "b", "new_tokens": 2})
    assert find_table(place, TABLE.origin, WIDTHS) is None
    for table in (TABLE, other, replace(TABLE, rounds=9)):
        store_table(place, table)
    assert find_table(place, other.origin, WIDTHS) == other
    stored = find_table(place, TABLE.origin, WIDTHS)
    assert stored is not None
    assert stored.rounds == 9
    assert find_table(place, {"device": "c"}, WIDTHS) is None
    assert [path.name for path in tmp_path.iterdir()] == ["tables.json"]


@pytest.mark.parametrize(
    "sensitivity",
    [
        {"vision_ms": None}, {"vision_ms": float("nan")}, {"dense_ms": {"prefill": 0.0}},
        {"dense_ms": "fast"}, {"saved_ms": None}, {"saved_ms": {"prefill": {}, "decode": {}}},
        {"saved_ms": {p: {COMPONENT: {"4": -1.0}} for p in ("prefill", "decode")}},
        {"saved_ms": {p: {COMPONENT: {"x": -1.0}} for p in ("prefill", "decode")}},
        {"friendly": {}}, {"friendly": {COMPONENT: [4]}}, {"friendly": {COMPONENT: [8, 4]}},
        {"errors": None}, {"new_tokens": 0}, {"factor": None, "spread": 1, "errors": ["a"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_table_is_refused_in_one_line(
    tmp_path: Path, sensitivity: dict[str, object]
) -> None:
    place = tmp_path / "tables.json"
    store_table(place, TABLE)
    document = json.loads(place.read_text())
    document["tables"][0] |= sensitivity
    place.write_text(json.dumps(document))
    with pytest.raises(StudyError, match=r"of this model and machine is damaged\. Remove the"):
        find_table(place, TABLE.origin, WIDTHS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 9, "tables": []}',
        '{"tables": 1}',
        '{"format": 1, "tables": ["origin"]}',
    ],
)
def test_another_file_is_refused_and_stays(tmp_path: Path, text: str) -> None:
    place = tmp_path / "tables.json"
    place.write_text(text)
    with pytest.raises(StudyError, match=r"tables\.json does not contain latency tables\."):
        store_table(place, TABLE)
    assert place.read_text() == text


def test_a_second_study_takes_the_latencies_of_the_first(
    tiny: LoadedModel, checkpoint: Path, tmp_path: Path
) -> None:
    config = load_config(write_tiny(checkpoint, tmp_path), ('latency.table="tables.json"',))
    assert config.latency.table == str(tmp_path / "tables.json")
    stages: list[str] = []
    runs = []
    for changes in ((), ("study.seed=5",), ("latency.batch=8",)):
        stages.clear()
        changed = load_config(tmp_path / "tiny.toml", ('latency.table="tables.json"', *changes))
        with study_inputs(changed, tiny) as inputs:
            calibration = calibrate(
                inputs, inputs.stopwatch(), lambda *stage: stages.append(stage[0])
            )
        runs.append((calibration.latency, "reading latencies from latency.table" in stages))
    assert [read for _, read in runs] == [False, True, False]
    assert runs[1][0] == runs[0][0]
    assert runs[2][0].origin["batch"] == 8


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("none/tables.json", "a latency table cannot be written there. Set latency.table"),
        (".", "does not contain latency tables. Set latency.table to another file"),
        ("", "latency.table = ''"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_before_there_is_a_study(
    checkpoint: Path, tmp_path: Path, table: str, message: str
) -> None:
    file = write_tiny(checkpoint, tmp_path)
    failed = invoke("run", file, "--set", f"latency.table='{table}'", check=False)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
    assert [place.name for place in tmp_path.iterdir()] == [file.name]


def test_a_study_follows_its_file_to_another_place_for_tables(tmp_path: Path) -> None:
    document = {
        "study": {"name": "s"}, "model": {"path": "digits-vlm"}, "task": {"name": "digits"},
    }  # fmt: skip
    config = StudyConfig.of(document | {"latency": {"table": "a.json"}})
    study = create_study(open_storage(f"sqlite:///{tmp_path / 's.db'}", create=True), config)
    moved = StudyConfig.of(document | {"latency": {"table": "b.json"}})
    assert first_difference(config, moved) is None
    update_paths(study, moved)
    assert config_of(study).latency.table == "b.json"
