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
from effllava_optuna.study.spec import read_spec
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
    origin={"device": "a", "batch": 1},
)


def test_a_table_comes_back_from_json_as_it_was() -> None:
    assert TABLE.error == pytest.approx(0.2)
    document = json.loads(json.dumps(facts_of(TABLE), allow_nan=False))
    assert document["error"] == pytest.approx(0.2)
    assert restored_table(document) == TABLE


def test_a_file_keeps_one_table_of_each_origin(tmp_path: Path) -> None:
    place = tmp_path / "tables.json"
    other = replace(TABLE, origin={"device": "b", "batch": 1})
    assert known_table(place, TABLE.origin) is None
    for table in (TABLE, other, replace(TABLE, rounds=9)):
        keep_table(place, table)
    assert known_table(place, other.origin) == other
    found = known_table(place, TABLE.origin)
    assert found is not None
    assert found.rounds == 9
    assert known_table(place, {"device": "c"}) is None
    assert [path.name for path in tmp_path.iterdir()] == ["tables.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9, "tables": []}', '{"tables": 1}'])
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


def test_a_table_that_cannot_be_written_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    file = write_tiny(checkpoint, tmp_path)
    failed = cli("run", file, "--set", "latency.table='none/tables.json'", check=False)
    assert failed.returncode == 2
    assert "none/tables.json: a latency table cannot be written: No such file" in failed.stderr
    assert "Traceback" not in failed.stderr
