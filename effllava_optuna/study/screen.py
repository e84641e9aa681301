"""What the terminal shows while a study is under way."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from effllava_optuna.logging import get_logger, get_verbosity

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.study.checkpoint import Written
    from effllava_optuna.study.evolution import Epochs
    from effllava_optuna.study.recovery import Report

_INTERRUPTED = 130
_DOUBTFUL = 0.2  # error of a latency table
_REFRESH = 0.5  # seconds between two looks at all trials, on a terminal
_logger = get_logger(__name__)


def console(*, aside: bool = False) -> Console:
    """Give the terminal, or a wide page where the output goes elsewhere.

    Args:
        aside: The one for errors: the output itself belongs to a program.
    """
    from rich.console import Console

    found = Console(stderr=aside)
    return found if found.is_terminal else Console(width=140, stderr=aside)


class Screen:
    """A progress bar on a terminal; elsewhere a line a stage and a generation.

    Whoever wants it quiet gets neither (`effllava_optuna.logging.set_verbosity`).

    Args:
        study: How to name the study in a command.
        verb: Of the command that goes on after an interruption.
        aside: Leave the standard output alone.
        instead: Gives the whole command that goes on, where it is another; asked when
            interrupted.
    """

    def __init__(
        self,
        study: str,
        verb: str = "resume",
        *,
        aside: bool = False,
        instead: Callable[[], str | None] = lambda: None,
    ) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self.study = study
        self.verb = verb
        self.instead = instead
        self.console = console(aside=aside)
        self.quiet = get_verbosity() > logging.INFO
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=False, ratio=1)),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task("", total=1.0, note="")
        self.pace = Pace()
        self._last = ""
        self._next = 0.0

    def __enter__(self) -> Screen:
        if self.live and not self.quiet:
            self.bar.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: object
    ) -> None:
        if self.live and not self.quiet:  # elsewhere it would leave an empty line
            self.bar.stop()
        if _interrupted(error):
            command = self.instead() or f"{self.verb} {self.study}"
            self.told(
                "Stopped. Nothing is lost; continue with: "
                f"python -m effllava_optuna.study {command}"
            )
            raise SystemExit(_INTERRUPTED)

    def told(self, *what: Any) -> None:
        """Print something that stays."""
        self.console.print(*what, sep="\n", highlight=False, soft_wrap=True)

    def noted(self, what: str) -> None:
        """Print something that stays, unless it shall be quiet; warnings in any case."""
        lines = what.splitlines()
        shown = [line for line in lines if not self.quiet or line.startswith("warning:")]
        if shown:
            self.told(*shown)

    def say(self, what: str, share: float) -> None:
        """Show what is under way, and which share of it is done."""
        self.bar.update(self.task, description=what, completed=share, total=1.0, note="")
        if what != self._last:
            self._log(f"{what} ...")
        self._last = what

    def watch(self, epochs: Epochs, trial: TrialRecord) -> None:
        """Show how far the search is."""
        if trial.epoch is None:
            return
        from optuna.trial import TrialState

        _logger.debug(
            f"trial {trial.number} of epoch {trial.epoch}: {trial.state}, "
            f"quality {trial.quality:.4f}, {trial.latency_ms:.1f} ms"
        )
        search = epochs.spec.search
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        done = len(epochs.study.get_trials(deepcopy=False, states=ended))
        self.pace.saw(done)
        early = time.monotonic() < self._next
        if early if self.live else done % search.population:
            return
        self._next = time.monotonic() + _REFRESH
        what = f"searching, epoch {trial.epoch + 1} of {search.epochs}"
        note = standing(epochs, trial.epoch, done) + self.pace.told(search.trials - done)
        self.bar.update(
            self.task, description=what, completed=done, total=search.trials, note=note
        )
        self._log(f"{what}: {note}")
        self._last = what

    def _log(self, line: str) -> None:
        """Log a line of progress; print it where there is no bar, and nobody reads the log."""
        _logger.debug(line)
        if not (self.live or self.quiet or get_verbosity() <= logging.DEBUG):
            self.told(line)


class Pace:
    """How long a trial takes, all processes together, and so the rest."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._each: float | None = None

    def saw(self, done: int) -> None:
        """Take down that so many trials are done by now."""
        now = time.monotonic()
        if self._first is None:
            self._first = done, now
        elif done > self._first[0]:
            self._each = (now - self._first[1]) / (done - self._first[0])

    def told(self, left: int) -> str:
        """Say how long a trial takes and ``left`` of them will; nothing is said of the first."""
        if self._each is None:
            return ""
        each = f"{self._each:.1f} s" if self._each >= 1 else f"{self._each * 1000:.0f} ms"
        return f", {each} a trial, {span(self._each * max(0, left))} left"


def span(seconds: float) -> str:
    """Say how long something takes.

    >>> span(7.2), span(312), span(8000)
    ('7 s', '5 min 12 s', '2 h 13 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def standing(epochs: Epochs, epoch: int, done: int) -> str:
    """Say how far a search is, and how good."""
    from optuna.trial import TrialState

    from effllava_optuna.policy import hypervolume_by_epoch
    from effllava_optuna.study.records import trials_of
    from effllava_optuna.study.storage import REASON

    trials = trials_of(epochs.study)
    failures = epochs.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    failed = sum(REASON in trial.user_attrs for trial in failures)
    best = max((record.quality for record in trials if record.eligible), default=float("nan"))
    volume = hypervolume_by_epoch(
        trials, epochs.epoch + 1, epochs.bench.bundle.reference, epochs.spec.quality.accuracy
    )[epoch]
    note = f"{done}/{epochs.spec.search.trials} trials, "
    note += f"{failed} failed, best quality {best:.4f}, hypervolume {volume:.4g}"
    return note


def _interrupted(error: BaseException | None) -> bool:
    """Tell whether Ctrl-C is what ended it.

    An interruption while Optuna tells a trial comes out as an UnboundLocalError (Optuna 5.0).
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def calibration(epochs: Epochs) -> str:
    """Say what the calibration found."""
    from effllava_optuna.study.storage import TASK

    bundle = epochs.bench.bundle
    dense, latency = bundle.dense, bundle.latency
    anatomy = epochs.bench.anatomy
    metric = epochs.study.user_attrs[TASK]["metric"]["search"]
    lines = [
        f"dense model: {dense.parameters:,} parameters, proxy accuracy {dense.accuracy:.3f} "
        f"({metric}), "
        f"{dense.latency_ms:.1f} ms; {len(anatomy.sites)} sites hold "
        f"{anatomy.parameters / dense.parameters:.0%} of the parameters",
        f"latency table: off by {latency.error:.1%} on {len(latency.errors)} random policies that "
        f"were run whole ({latency.rounds} rounds); refit tables: {dense.memory_mb:.1f} MB",
    ]
    if latency.error > _DOUBTFUL:
        lines.append(
            "warning: predicted latencies are that far off because the machine was busy, or the "
            "workload is too short: use a quiet machine, or more latency.seconds"
        )
    if latency.launched:
        lines.append(
            f"warning: {' and '.join(latency.launched)} could not be captured as a CUDA graph: "
            "the time to launch kernels is in the table"
        )
    if bundle.effective_tokens:
        tokens = sorted(bundle.effective_tokens.values())
        lines.append(f"token weights: {tokens[0]:.0f} to {tokens[-1]:.0f} effective tokens a site")
    if bundle.damping:
        dampings = sorted(bundle.damping.values())
        lines.append(f"damping of the refits: {dampings[0]:g} to {dampings[-1]:g}")
    narrowest = latency.predict(anatomy, bundle.narrowest(anatomy))
    if dense.latency_ms / narrowest < 1.5:
        lines.append(
            f"warning: the narrowest policy is only {dense.latency_ms / narrowest:.2f}x faster: "
            "this workload is bound by overhead; use a larger latency.batch or longer prompts"
        )
    return "\n".join(lines)


def exported(written: Written) -> str:
    """Say where an export is, that it comes back, and what fitting it in sequence did."""
    from effllava_optuna.surgery import VerifiedOnnx

    verified, before, after = written.verified, written.before, written.after
    found = f"{verified.parameters:,} parameters"
    if isinstance(verified, VerifiedOnnx):
        line = (
            f"language part of trial {written.trial} exported to {verified.path}: {found}; in "
            f"onnxruntime logits differ by {verified.logit_difference:.1e}"
        )
    else:
        padding = f" ({verified.padded:.0%} of them padding)" if verified.padded else ""
        line = (
            f"trial {written.trial} exported to {verified.directory}: {found}{padding}; reloaded "
            f"in a fresh process: logits differ by {verified.logit_difference:.1e}, "
            f"same generation: {'yes' if verified.generation_equal else 'no'}"
        )
    if before is None or after is None:
        return line
    return (
        f"{line}\nfitted in sequence: accuracy {before.proxy:.3f} -> {after.proxy:.3f} on the "
        f"proxy that it was fitted to, {before.validation:.3f} -> {after.validation:.3f} on "
        "validation"
    )


def recovered(report: Report) -> str:
    """Say what a recovery gave, on samples that it did not learn from."""
    done, verified = report.recovered, report.verified
    accuracies = [
        f"{share:.3f} [{low:.3f}, {high:.3f}]"
        for share, (low, high) in (report.before, report.after)
    ]
    return (
        f"{done.steps} steps on {done.samples} samples, {done.weights:,} weights: divergence from "
        f"the dense model {done.before:.3f} -> {done.after:.3f} nats on samples held out\n"
        f"validation accuracy {' -> '.join(accuracies)}\n"
        f"written to {verified.directory}; reloaded in a fresh process: logits differ by "
        f"{verified.logit_difference:.1e}, same generation: "
        f"{'yes' if verified.generation_equal else 'no'}"
    )


def quiet_transformers() -> None:
    """Keep transformers from drawing its own bars over ours."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
