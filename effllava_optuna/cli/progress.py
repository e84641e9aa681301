"""Show the progress of a command on the terminal."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from effllava_optuna.cli import PROGRAM
from effllava_optuna.cli.messages import search_summary
from effllava_optuna.cli.output import console
from effllava_optuna.logging import get_logger, get_verbosity

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.search.session import SearchSession

_EXIT_INTERRUPTED = 130
_REFRESH_SECONDS = 0.5  # between two evaluations of all trials, on a terminal
_LINE_SECONDS = 30.0  # after which another line is printed, where there is no bar
_logger = get_logger(__name__)


class ProgressDisplay:
    """A progress bar on a terminal; otherwise lines: for stages, generations, and each 30 s.

    Neither is shown with ``--quiet``. An interruption prints the command that continues, and exits
    with code 130. A step that it interrupts, such as the calibration, begins again.

    Args:
        resume_command: Verb and arguments of the command that continues after an interruption, or
            a function that returns them when it is interrupted; None: the same command.
        stderr: See `console`.
    """

    def __init__(
        self, resume_command: str | Callable[[], str] | None, *, stderr: bool = False
    ) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self.resume_command = resume_command
        self.console = console(stderr=stderr)
        self.quiet = get_verbosity() > logging.INFO
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.trial_rate = TrialRate()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=6),
            TextColumn(
                "{task.fields[note]}",
                markup=False,
                table_column=Column(no_wrap=False, ratio=1),
            ),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=1.0, note="")
        self._stage = ""
        self._stage_started = self._next_line = self._next_refresh = 0.0

    def __enter__(self) -> ProgressDisplay:
        if self.live and not self.quiet:
            self._bar.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: object
    ) -> None:
        if self.live and not self.quiet:  # on other outputs it would print an empty line
            self._bar.stop()
        if _is_interruption(error):
            self.print(f"Stopped. What is stored stays; {self._continuation()}")
            raise SystemExit(_EXIT_INTERRUPTED)

    def _continuation(self) -> str:
        """Return how to continue after an interruption."""
        command = self.resume_command() if callable(self.resume_command) else self.resume_command
        if command is None:
            return "run the same command again."
        return f"continue with: {PROGRAM} {command}"

    def print(self, *content: Any) -> None:
        """Print lines, tables or figures that stay on the terminal."""
        self.console.print(*content, sep="\n", highlight=False, soft_wrap=True)

    def print_notes(self, text: str) -> None:
        """Print lines that stay on the terminal; with ``--quiet`` only warnings."""
        lines = [
            line for line in text.splitlines() if not self.quiet or line.startswith("warning:")
        ]
        if lines:
            self.print(*lines)

    def report_stage(self, stage: str, share: float) -> None:
        """Show the current stage and its finished share, in [0, 1]."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._stage_started = stage, now
            self.trial_rate.pause()
            self._log(f"{stage} ...")
        passed = now - self._stage_started
        left = f"{format_duration(passed * (1 / share - 1))} left" if 0 < share < 1 else ""
        note = left if passed >= 1 else ""
        self._show(stage, share, 1.0, note)
        if left and now >= self._next_line:
            self._log(f"{stage}: {share:.0%}, {left}")

    def show_trial(self, session: SearchSession, trial: TrialRecord) -> None:
        """Show the progress of the search after a trial."""
        if trial.epoch is None:
            return
        from optuna.trial import TrialState

        _logger.debug(
            f"trial {trial.number} of epoch {trial.epoch}: {trial.state}, "
            f"quality {trial.quality:.4f}, {trial.latency_ms:.1f} ms"
        )
        search = session.config.search
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        finished = len(session.study.get_trials(deepcopy=False, states=states))
        self.trial_rate.update(finished)
        if self.live:
            if time.monotonic() < self._next_refresh:
                return
        elif finished % search.population and time.monotonic() < self._next_line:
            return
        self._next_refresh = time.monotonic() + _REFRESH_SECONDS
        epoch = f"epoch {trial.epoch + 1}/{search.epochs}"
        note = search_summary(session, finished)
        note += self.trial_rate.remaining_time(search.trials - finished)
        self._show(epoch, finished, search.trials, note)
        self._log(f"searching, epoch {trial.epoch + 1} of {search.epochs}: {note}")
        self._stage = epoch

    def _show(self, description: str, completed: float, total: float, note: str) -> None:
        """Show a line with a bar; the clock runs on, which rich stops when a bar is full."""
        self._bar.update(
            self._task, description=description, completed=completed, total=total, note=note
        )
        self._bar.tasks[0].finished_time = None

    def _log(self, line: str) -> None:
        """Log a line, and print it if there is neither a bar nor the log on the terminal."""
        _logger.debug(line)
        self._next_line = time.monotonic() + _LINE_SECONDS
        if not (self.live or self.quiet or get_verbosity() <= logging.DEBUG):
            self.print(line)


class TrialRate:
    """The mean time of a trial, over all processes of a study; other stages do not count."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None
        self._trials, self._seconds = 0, 0.0

    def update(self, finished: int) -> None:
        """Record that ``finished`` trials are finished now."""
        now = time.monotonic()
        if self._last is None:
            self._last = finished, now
        elif finished > self._last[0]:
            self._trials += finished - self._last[0]
            self._seconds += now - self._last[1]
            self._last = finished, now

    def pause(self) -> None:
        """Do not count the time until the next update: something else is done."""
        self._last = None

    def remaining_time(self, trials: int) -> str:
        """Return the time per trial and of ``trials`` trials; empty before one was timed."""
        if not self._trials:
            return ""
        seconds = self._seconds / self._trials
        rate = f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
        left = format_duration(seconds * max(0, trials))
        return f", {rate} each, {left} left"


def format_duration(seconds: float) -> str:
    """Return a duration in at most two units.

    Example:
        >>> format_duration(7.2), format_duration(312), format_duration(8000)
        ('7 s', '5 min 12 s', '2 h 13 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _is_interruption(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused an error.

    An interruption while Optuna tells a trial becomes an UnboundLocalError (Optuna 5.0).
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
