"""What the terminal says while a study is under way, and when it is stopped."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from effllava_optuna.logging import set_verbosity
from effllava_optuna.study import storage
from effllava_optuna.study.loop import continued
from effllava_optuna.study.records import trials_of
from effllava_optuna.study.screen import Pace, Screen, span
from tests.study.conftest import Ran, clone

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _loud() -> Iterator[None]:
    set_verbosity(logging.INFO)
    yield
    set_verbosity(logging.INFO)


def tell() -> None:
    """What happens in Optuna where Ctrl-C falls into the telling of a trial."""
    try:
        raise KeyboardInterrupt
    finally:
        raise UnboundLocalError("cannot access local variable 'updated_state'")


def test_ctrl_c_is_told_wherever_it_falls(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, Screen("small.toml"):
        tell()
    assert stopped.value.code == 130
    told = capsys.readouterr().out
    assert "continue with: python -m effllava_optuna.study resume small.toml" in told


def test_where_nothing_was_begun_it_goes_on_with_another_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit), Screen("small.toml", instead=lambda: "run small.toml"):
        raise KeyboardInterrupt
    assert capsys.readouterr().out.endswith("python -m effllava_optuna.study run small.toml\n")


def test_other_errors_are_no_interruption() -> None:
    with pytest.raises(ZeroDivisionError), Screen("small.toml"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("level", "out", "err"),
    [
        (logging.WARNING, "warning: hot\nresult\n", ""),
        (logging.INFO, "ranking ...\nfine\nwarning: hot\nresult\n", ""),
        (logging.DEBUG, "fine\nwarning: hot\nresult\n", "ranking ..."),
    ],
)
def test_progress_is_plain_or_quiet_or_in_the_log(
    level: int, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_verbosity(level)
    with Screen("small.toml") as screen:
        screen.say("ranking", 0.0)
        screen.say("ranking", 0.5)
        screen.noted("fine\nwarning: hot")
        screen.told("result")
    told = capsys.readouterr()
    assert told.out == out
    assert err in told.err
    assert bool(told.err) == bool(err)


@pytest.mark.parametrize(("term", "live"), [("xterm", True), ("dumb", False)])
def test_a_dumb_terminal_gets_lines(
    term: str, live: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", term)
    with Screen("small.toml") as screen:
        assert screen.live == live
        screen.say("ranking", 0.5)
    assert ("\x1b" in capsys.readouterr().out) == live


def test_the_search_says_all_that_one_asks(
    smoke: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{clone(smoke.file, tmp_path / 'clone').with_suffix('.db')}"
    study = storage.open_study(storage.open_storage(url), "smoke")
    with continued(study, url) as epochs, Screen("smoke.toml") as screen:
        screen.pace.saw(40)
        screen.watch(epochs, trials_of(study)[-1])
    told = capsys.readouterr().out
    assert re.fullmatch(
        r"searching, epoch 2 of 2: 48/48 trials, 0 failed, best quality 0\.\d{4}, "
        r"hypervolume [\d.]+, \d+ ms a trial, 0 s left\n",
        told,
    ), told


def test_the_pace_is_of_trials_that_were_seen_to_end() -> None:
    pace = Pace()
    pace.saw(10)
    assert pace.told(90) == ""
    pace.saw(10)
    assert pace.told(90) == ""
    pace.saw(12)
    assert re.fullmatch(r", \d+ ms a trial, 0 s left", pace.told(0))


def test_spans_are_said_in_two_units_at_most() -> None:
    assert [span(seconds) for seconds in (0.2, 59.7, 3599.6)] == ["0 s", "1 min 0 s", "1 h 0 min"]
