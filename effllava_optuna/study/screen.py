"""What the terminal shows while a study is under way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from effllava_optuna.policy import hypervolume_by_epoch
from effllava_optuna.study.records import trials_of

if TYPE_CHECKING:
    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.study.evolution import Epochs

_INTERRUPTED = 130


def console() -> Console:
    """Give the terminal, or a wide page where the output goes elsewhere."""
    found = Console()
    return found if found.is_terminal else Console(width=140)


class Screen:
    """A progress bar on a terminal; a line a stage and a generation elsewhere.

    Args:
        study: How to name the study in a command.
        verb: Of the command that goes on after an interruption.
    """

    def __init__(self, study: str, verb: str = "resume") -> None:
        self.study = study
        self.verb = verb
        self.console = console()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task("", total=1.0, note="")
        self._last = ""

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bar.stop()
        if kind is KeyboardInterrupt:
            self.told(
                "Stopped. Nothing is lost; continue with: "
                f"python -m effllava_optuna.study {self.verb} {self.study}"
            )
            raise SystemExit(_INTERRUPTED)

    def told(self, *what: Any) -> None:
        """Print something that stays."""
        self.console.print(*what, sep="\n", highlight=False, soft_wrap=True)

    def say(self, what: str, share: float) -> None:
        """Show what is under way, and which share of it is done."""
        self.bar.update(self.task, description=what, completed=share, total=1.0, note="")
        if not self.console.is_terminal and what != self._last:
            self.told(f"{what} ...")
        self._last = what

    def watch(self, epochs: Epochs, trial: TrialRecord) -> None:
        """Show how far the search is."""
        if trial.epoch is None:
            return
        search = epochs.spec.search
        trials = trials_of(epochs.study)
        done = sum(record.measured for record in trials)
        if not self.console.is_terminal and done % search.population:
            return
        best = max((record.quality for record in trials if record.eligible), default=float("nan"))
        volume = hypervolume_by_epoch(
            trials, epochs.epoch + 1, epochs.bench.bundle.reference, epochs.spec.quality.accuracy
        )[trial.epoch]
        note = f"{done}/{search.trials} trials, best quality {best:.4f}, hypervolume {volume:.4g}"
        what = f"searching, epoch {trial.epoch}"
        self.bar.update(
            self.task, description=what, completed=done, total=search.trials, note=note
        )
        if not self.console.is_terminal:
            self.told(f"{what}: {note}")
        self._last = what
