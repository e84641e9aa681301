"""Promise 5 and 6 under SIGKILL, before and after every change of every kind of storage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import new_database
from tests.study import faults

EXPECTED = {
    "slots": faults.TRIALS,
    "twice": 0,
    "epochs": [0, 1],
    "open": 0,
    "dangling": 0,
}
SIGKILLED = -9
STORAGES = ["sqlite", "journal", "postgresql"]


def run(url: str, scratch: Path, *points: int) -> dict[str, Any]:
    scratch.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-W", "ignore", "-m", faults.__name__, url, str(scratch)]
    done = subprocess.run(
        [*words, ",".join(map(str, points))],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(params=STORAGES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Give a function that makes an empty storage of one kind."""

    def make(name: str) -> tuple[str, Path]:
        scratch = tmp_path / name
        scratch.mkdir()
        if request.param == "postgresql":
            return new_database(request.getfixturevalue("postgresql")), scratch
        scheme, suffix = ("sqlite", "db") if request.param == "sqlite" else ("journal", "log")
        return f"{scheme}:///{scratch / f'a.{suffix}'}", scratch

    return make


@cache
def undisturbed(scratch: Path) -> str:
    """The digest of a study that nobody disturbs; it is the same in every storage."""
    found = run(f"sqlite:///{scratch / 'a.db'}", scratch)["found"]
    return str(found["digest"])


def check(done: dict[str, Any], digest: str, kills: int) -> None:
    assert done["statuses"] == [SIGKILLED] * kills
    assert done["end"] == 0
    assert done["found"] == EXPECTED | {"digest": digest}


@pytest.mark.slow
def test_kills_at_some_changes_leave_no_trace(place: Any, tmp_path_factory: Any) -> None:
    """One study is killed again and again: a few changes further each time it goes on."""
    digest = undisturbed(tmp_path_factory.getbasetemp() / "undisturbed")
    url, scratch = place("some")
    check(run(url, scratch, 4, 17, 8, 21, 6, 13), digest, 6)


@pytest.mark.slow
def test_a_kill_before_or_after_any_change_leaves_no_trace(
    place: Any, tmp_path_factory: Any
) -> None:
    digest = undisturbed(tmp_path_factory.getbasetemp() / "undisturbed")
    changes = run(*place("count"))["counts"]["changes"]
    assert changes > 4 * faults.TRIALS
    for point in range(2 * changes):
        check(run(*place(f"at-{point}"), point), digest, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_random_kills_leave_no_trace(place: Any, tmp_path_factory: Any, seed: int) -> None:
    """Five kills a study, twenty studies: a hundred on each storage."""
    digest = undisturbed(tmp_path_factory.getbasetemp() / "undisturbed")
    rng = np.random.default_rng(seed)
    points = [int(point) for point in rng.integers(2, 24, size=5)]
    check(run(*place("random"), *points), digest, 5)
