"""Promise 5 and 6 under SIGKILL, before and after every change of every kind of storage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import new_database
from tests.search import faults, torn
from tests.storage import leaders
from tests.study_fixtures import subprocess_environment

EXPECTED = {
    "slots": faults.TRIALS,
    "twice": 0,
    "epochs": [0, 1],
    "open": 0,
    "dangling": 0,
}
SIGKILLED = -9
STRIPES = 4  # every point is in one of them
STORAGES = ["sqlite", "journal", "postgresql"]


def run(*jobs: tuple[str, Path, list[int]]) -> list[dict[str, Any]]:
    """Kill studies at given points, one after the other, in one process."""
    lines = [json.dumps([url, str(scratch), points]) for url, scratch, points in jobs]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", faults.__name__], input="\n".join(lines),
        capture_output=True, text=True, check=True, env=subprocess_environment(),
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A study that nobody disturbs; its digest is the same in every storage."""
    scratch = tmp_path_factory.mktemp("undisturbed")
    [done] = run((f"sqlite:///{scratch / 'a.db'}", scratch, []))
    assert done["found"].items() >= EXPECTED.items()
    found: dict[str, Any] = done["found"]
    return found


def check(done: list[dict[str, Any]], undisturbed: dict[str, Any], kills: int) -> None:
    for one in done:
        assert one["statuses"] == [SIGKILLED] * kills
        assert one["end"] == 0
        assert one["found"] == undisturbed


@pytest.mark.kill
def test_kills_at_some_changes_leave_no_trace(place: Any, undisturbed: dict[str, Any]) -> None:
    """One study is killed again and again: a few changes further each time it goes on."""
    points = [4, 17, 8, 21, 6, 13]
    check(run((*place("some"), points)), undisturbed, len(points))


@pytest.mark.exhaustive
@pytest.mark.parametrize("stripe", range(STRIPES))
def test_a_kill_before_or_after_any_change_leaves_no_trace(
    place: Any, undisturbed: dict[str, Any], stripe: int
) -> None:
    [whole] = run((*place("count"), []))
    changes = whole["counts"]["changes"]
    assert changes > 4 * faults.TRIALS
    points = range(stripe, 2 * changes, STRIPES)
    check(run(*((*place(f"at-{at}"), [at]) for at in points)), undisturbed, 1)


@pytest.mark.exhaustive
def test_a_hundred_random_kills_leave_no_trace(place: Any, undisturbed: dict[str, Any]) -> None:
    """Five kills a study, twenty studies."""
    points = np.random.default_rng(0).integers(2, 24, size=(20, 5)).tolist()
    jobs = ((*place(f"study-{number}"), five) for number, five in enumerate(points))
    check(run(*jobs), undisturbed, 5)


def check_torn(url: str, scratch: Path, undisturbed: dict[str, Any], stride: int) -> None:
    """Continue a study from every ``stride``-th byte of its last write."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", torn.__name__, url, str(scratch), str(stride)],
        capture_output=True, text=True, check=True, env=subprocess_environment(),
    )  # fmt: skip
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert outcomes
    assert [one for one in outcomes if one[1:] != [0, undisturbed]] == []


@pytest.mark.kill
@pytest.mark.parametrize(
    ("url", "stride"), [("sqlite:///{}/a.db", 997), ("journal:///{}/a.log", 29)]
)
def test_a_study_whose_last_write_was_torn_leaves_no_trace(
    tmp_path: Path, undisturbed: dict[str, Any], url: str, stride: int
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    check_torn(url.format(scratch), scratch, undisturbed, stride)


@pytest.mark.exhaustive
@pytest.mark.parametrize("url", ["sqlite:///{}/a.db", "journal:///{}/a.log"])
def test_a_study_whose_last_write_was_torn_at_any_byte_leaves_no_trace(
    tmp_path: Path, undisturbed: dict[str, Any], url: str
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    check_torn(url.format(scratch), scratch, undisturbed, 1)


@pytest.mark.kill
def test_epochs_are_published_once_though_leaders_die(place: Any) -> None:
    """Eight processes want forty epochs; a quarter of those who make one die over it."""
    url, _ = place("leaders")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", leaders.__name__, url, "0"],
        capture_output=True, text=True, check=True, env=subprocess_environment(),
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["ended"] == {"0": leaders.WORKERS}, done.stderr
    assert found["epochs"] == list(range(leaders.EPOCHS))
    assert found["open"] == 0
    assert found["killed"] >= leaders.EPOCHS * leaders.DEATHS / 2
