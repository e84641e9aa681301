"""The progress display, interruptions, and summaries of a search."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from effllava_optuna.cli import progress
from effllava_optuna.cli.progress import ProgressDisplay, TrialRate, format_duration
from effllava_optuna.logging import set_verbosity
from effllava_optuna.search.runner import resume
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.studies import open_study
from effllava_optuna.storage.trial_records import effective_records
from tests.study_fixtures import FinishedStudy, copy_study, url_of_study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def _default_verbosity() -> Iterator[None]:
    set_verbosity(logging.INFO)
    yield
    set_verbosity(logging.INFO)


def interrupt_optuna() -> None:
    """Raise what Optuna raises if Ctrl-C interrupts it while it tells a trial."""
    try:
        raise KeyboardInterrupt
    finally:
        raise UnboundLocalError("cannot access local variable 'updated_state'")


@pytest.mark.parametrize("command", ["resume small.toml", lambda: "resume small.toml"])
def test_an_interruption_prints_the_command_that_continues(
    command: str | Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped, ProgressDisplay(command):
        interrupt_optuna()
    assert stopped.value.code == 130
    assert capsys.readouterr().out == (
        "Stopped. What is stored stays; continue with: effllava-optuna resume small.toml\n"
    )


def test_an_interruption_of_a_command_without_state_names_no_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit), ProgressDisplay(None):
        interrupt_optuna()
    assert capsys.readouterr().out == (
        "Stopped. What is stored stays; run the same command again.\n"
    )


def test_other_errors_are_not_interruptions() -> None:
    with pytest.raises(ZeroDivisionError), ProgressDisplay("resume small.toml"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("level", "out", "err"),
    [
        (logging.WARNING, "warning: hot\nresult\n", ""),
        (logging.INFO, "ranking ...\nfine\nwarning: hot\nresult\n", ""),
        (logging.DEBUG, "fine\nwarning: hot\nresult\n", "ranking ..."),
    ],
)
def test_progress_is_printed_logged_or_hidden_by_verbosity(
    level: int, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_verbosity(level)
    with ProgressDisplay("resume small.toml") as display:
        display.report_stage("ranking", 0.0)
        display.report_stage("ranking", 0.5)
        display.print_notes("fine\nwarning: hot")
        display.print("result")
    printed = capsys.readouterr()
    assert printed.out == out
    assert err in printed.err
    assert bool(printed.err) == bool(err)


def test_a_long_stage_prints_what_is_left_each_half_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with ProgressDisplay("resume small.toml") as display:
        for second in range(100):
            clock[0] = 1000.0 + second
            display.report_stage("timing widths", second / 100)
    assert capsys.readouterr().out.splitlines() == [
        "timing widths ...",
        "timing widths: 30%, 1 min 10 s left",
        "timing widths: 60%, 40 s left",
        "timing widths: 90%, 10 s left",
    ]


@pytest.mark.parametrize(("term", "live"), [("xterm", True), ("dumb", False)])
def test_a_dumb_terminal_has_no_progress_bar(
    term: str, live: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", term)
    with ProgressDisplay("resume small.toml") as display:
        assert display.live == live
        display.report_stage("ranking", 0.5)
    assert ("\x1b" in capsys.readouterr().out) == live


def test_the_search_shows_trials_failures_quality_and_time(
    smoke: FinishedStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = url_of_study(copy_study(smoke.file, tmp_path / "study"))
    study = open_study(open_storage(url), "smoke")
    with resume(study, url) as session, ProgressDisplay("resume smoke.toml") as display:
        display.trial_rate.update(40)
        display.show_trial(session, effective_records(study)[-1])
    printed = capsys.readouterr().out
    assert re.fullmatch(
        r"searching, epoch 2 of 2: 48/48 trials, best quality 0\.\d{4}, \d+ ms each, 0 s left\n",
        printed,
    ), printed


def test_the_rate_is_measured_between_finished_trials() -> None:
    rate = TrialRate()
    rate.update(10)
    assert rate.remaining_time(90) == ""
    rate.update(10)
    assert rate.remaining_time(90) == ""
    rate.update(12)
    assert re.fullmatch(r", \d+ ms each, 0 s left", rate.remaining_time(0))


def test_the_rate_leaves_out_what_is_done_between_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    rate = TrialRate()
    for now, finished in ((0, 1), (4, 3)):
        clock[0] = now
        rate.update(finished)
    rate.pause()  # the projector is trained for 500 seconds
    for now, finished in ((504, 4), (506, 5)):
        clock[0] = now
        rate.update(finished)
    assert rate.remaining_time(10) == ", 2.0 s each, 20 s left"


def test_durations_have_at_most_two_units() -> None:
    durations = [format_duration(seconds) for seconds in (0.2, 59.7, 3599.6)]
    assert durations == ["0 s", "1 min 0 s", "1 h 0 min"]


@pytest.mark.parametrize(
    ("epoch", "counts"),
    [("epoch 2/2", "32/48 trials, 2 failed"), ("epoch 10/12", "1232/2400 trials")],
)
def test_the_line_of_the_search_fits_in_a_hundred_columns(
    terminal: None, epoch: str, counts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressDisplay("resume small.toml") as display:
        rate = TrialRate()
        rate._trials, rate._seconds = 2, 24.6
        note = f"{counts}, best quality 0.9639{rate.remaining_time(60)}"
        display._show(epoch, 32, 48, note)
        display._bar.refresh()
        capsys.readouterr()
        display._bar.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    (line,) = [line for line in re.split(r"[\r\n]+", text) if counts in line][:1]
    assert note in line


def test_the_clock_runs_on_after_a_stage_is_complete(terminal: None) -> None:
    with ProgressDisplay("resume small.toml") as display:
        display.report_stage("timing the finalists", 1.0)
        display.report_stage("opening the test split", 0.0)
        (task,) = display._bar.tasks
        assert not task.finished
        display.report_stage("opening the test split", 1.0)
        assert not task.finished


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of a hundred columns."""
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)
