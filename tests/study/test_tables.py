"""Latency tables in a file are used again where everything they depend on is the same."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from effllava_optuna.errors import StudyError
from effllava_optuna.objectives import LatencyTable
from effllava_optuna.policy import SiteId
from effllava_optuna.study.calibrating import calibrate
from effllava_optuna.study.spec import StudySpec, read_spec
from effllava_optuna.study.storage import (
    create_study,
    difference,
    follow,
    open_storage,
    spec_of,
)
from effllava_optuna.study.tables import facts_of, keep_table, known_table, restored_table
from effllava_optuna.study.workbench import Workbench
from tests.study.conftest import cli, write_tiny

if TYPE_CHECKING:
    from pathlib import Path

    from effllava_optuna.surgery import Loaded

SITE = SiteId("language.00.mlp")
TABLE = LatencyTable(
    new_tokens=2,
    vision_ms=1.0,
    dense_ms={"prefill": 10.0, "decode": 1.0},
    saved_ms={phase: {SITE: {4: -1.0, 8: 0.0}} for phase in ("prefill", "decode")},
    friendly={SITE: (4, 8)},
    errors=(0.1, -0.3),
    spread=None,
    factor={"prefill": 0.9, "decode": 1.0},
    rounds=3,
    launched=("decode",),
    origin={"device": "a", "new_tokens": 2},
)
WIDTHS = {SITE: (4, 8)}


def test_a_table_comes_back_from_json_as_it_was() -> None:
    assert TABLE.error == pytest.approx(0.2)
    document = json.loads(json.dumps(facts_of(TABLE), allow_nan=False))
    assert document["error"] == pytest.approx(0.2)
    assert restored_table(document) == TABLE


def test_a_file_keeps_one_table_of_each_origin(tmp_path: Path) -> None:
    place = tmp_path / "tables.json"
    other = replace(TABLE, origin={"device": "b", "new_tokens": 2})
    assert known_table(place, TABLE.origin, WIDTHS) is None
    for table in (TABLE, other, replace(TABLE, rounds=9)):
        keep_table(place, table)
    assert known_table(place, other.origin, WIDTHS) == other
    found = known_table(place, TABLE.origin, WIDTHS)
    assert found is not None
    assert found.rounds == 9
    assert known_table(place, {"device": "c"}, WIDTHS) is None
    assert [path.name for path in tmp_path.iterdir()] == ["tables.json"]


@pytest.mark.parametrize(
    "damage",
    [
        {"vision_ms": None}, {"vision_ms": float("nan")}, {"dense_ms": {"prefill": 0.0}},
        {"dense_ms": "fast"}, {"saved_ms": None}, {"saved_ms": {"prefill": {}, "decode": {}}},
        {"saved_ms": {p: {SITE: {"4": -1.0}} for p in ("prefill", "decode")}},
        {"saved_ms": {p: {SITE: {"x": -1.0}} for p in ("prefill", "decode")}},
        {"friendly": {}}, {"friendly": {SITE: [4]}}, {"friendly": {SITE: [8, 4]}},
        {"errors": None}, {"new_tokens": 0}, {"factor": None, "spread": 1, "errors": ["a"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_table_is_refused_in_one_line(tmp_path: Path, damage: dict[str, object]) -> None:
    place = tmp_path / "tables.json"
    keep_table(place, TABLE)
    document = json.loads(place.read_text())
    document["tables"][0] |= damage
    place.write_text(json.dumps(document))
    with pytest.raises(StudyError, match=r"of this model and machine is damaged\. Remove the"):
        known_table(place, TABLE.origin, WIDTHS)


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
    with pytest.raises(StudyError, match=r"tables\.json: holds no latency tables\."):
        keep_table(place, TABLE)
    assert place.read_text() == text


def test_a_second_study_takes_the_latencies_of_the_first(
    tiny: Loaded, checkpoint: Path, tmp_path: Path
) -> None:
    spec = read_spec(write_tiny(checkpoint, tmp_path), ('latency.table="tables.json"',))
    assert spec.latency.table == str(tmp_path / "tables.json")
    said: list[str] = []
    found = []
    for changes in ((), ("study.seed=5",), ("latency.batch=8",)):
        said.clear()
        mine = read_spec(tmp_path / "tiny.toml", ('latency.table="tables.json"', *changes))
        with Workbench(mine, tiny) as bench:
            bundle = calibrate(bench, lambda *what: said.append(what[0]))
        found.append((bundle.latency, "taking latencies from latency.table" in said))
    assert [again for _, again in found] == [False, True, False]
    assert found[1][0] == found[0][0]
    assert found[2][0].origin["batch"] == 8


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("none/tables.json", "a latency table cannot be written there. Give latency.table"),
        (".", "holds no latency tables. Name another file in latency.table"),
        ("", "latency.table = ''"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_before_there_is_a_study(
    checkpoint: Path, tmp_path: Path, table: str, told: str
) -> None:
    file = write_tiny(checkpoint, tmp_path)
    failed = cli("run", file, "--set", f"latency.table='{table}'", check=False)
    assert failed.returncode == 2
    assert told in failed.stderr
    assert "Traceback" not in failed.stderr
    assert [place.name for place in tmp_path.iterdir()] == [file.name]


def test_a_study_follows_its_file_to_another_place_for_tables(tmp_path: Path) -> None:
    document = {
        "study": {"name": "s"}, "model": {"path": "digits-vlm"}, "task": {"name": "digits"},
    }  # fmt: skip
    spec = StudySpec.of(document | {"latency": {"table": "a.json"}})
    study = create_study(open_storage(f"sqlite:///{tmp_path / 's.db'}", create=True), spec)
    moved = StudySpec.of(document | {"latency": {"table": "b.json"}})
    assert difference(spec, moved) is None
    follow(study, moved)
    assert spec_of(study).latency.table == "b.json"
