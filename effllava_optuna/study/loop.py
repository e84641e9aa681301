"""Run a study from where it stands to its end."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from effllava_optuna.errors import StudyError
from effllava_optuna.samplers import reap, slot_of
from effllava_optuna.study import artifacts, storage
from effllava_optuna.study.board import attach, draw
from effllava_optuna.study.evolution import Epochs, ProjectorEvolution, SearchOver, silent
from effllava_optuna.study.finish import Finish
from effllava_optuna.study.objective import PruningObjective, TrialFailed
from effllava_optuna.study.records import failures_of, record_of
from effllava_optuna.study.tables import check_file
from effllava_optuna.study.workbench import Workbench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna import Study
    from optuna.trial import FrozenTrial

    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.study.spec import StudySpec
    from effllava_optuna.study.workbench import Say

    Watch = Callable[[Epochs, TrialRecord], None]

_FEWEST_FAILURES = 4  # before which nothing is said of their share
_NEAR_END = 8  # slots; before that, more workers than this would have to be idle
_SELDOM = 30.0  # seconds between two looks of the dashboard's page, but for a new epoch
_PAUSE = 0.2  # seconds between two looks at what others are doing


@contextmanager
def begun(
    spec: StudySpec, url: str, say: Say = silent, *, device: str | None = None
) -> Iterator[Epochs]:
    """Begin a study: nothing is written before its model and its samples are loaded.

    Args:
        spec: What it is told.
        url: Of its database, made if need be; artifacts lie beside it.
        say: Is told what is under way.
        device: Of this process; None: what the spec says.

    Raises:
        StudyError: There is a study of that name, or ``latency.table`` cannot be used.
    """
    file = storage.file_of(url)
    if file is None or file.is_file():
        storage.refuse_existing(storage.open_storage(url), spec.study.name)
    if spec.latency.table is not None:
        check_file(Path(spec.latency.table))
    say("loading the model", 0.0)
    with Workbench(spec, device=device) as bench:
        _ = bench.crossed  # samples that cannot be asked are refused before there is a study
        study = storage.create_study(storage.open_storage(url, create=True), spec)
        with _ready(study, url, bench, say) as epochs:
            yield epochs


@contextmanager
def continued(
    study: Study,
    url: str,
    say: Say = silent,
    *,
    device: str | None = None,
    force: bool = False,
) -> Iterator[Epochs]:
    """Load the model and the samples of a study that exists, and adopt its calibration."""
    say("loading the model", 0.0)
    spec = storage.spec_of(study)
    with (
        Workbench(spec, device=device) as bench,
        _ready(study, url, bench, say, force=force) as epochs,
    ):
        yield epochs


@contextmanager
def _ready(
    study: Study, url: str, bench: Workbench, say: Say, *, force: bool = False
) -> Iterator[Epochs]:
    vault = artifacts.Vault(artifacts.store_for(url, bench.spec))
    epochs = Epochs(study, bench, vault, say)
    epochs.open(force=force)
    study.sampler = epochs.sampler
    yield epochs


def search(epochs: Epochs, watch: Watch | None = None) -> None:
    """Measure what is still to be measured, epoch by epoch."""
    study, evolution = epochs.study, ProjectorEvolution(epochs)
    table = epochs.spec.search
    reap(study)
    drawn = time.monotonic()

    def after(trial: FrozenTrial) -> None:
        nonlocal drawn
        if trial.state == TrialState.FAIL:
            _refuse_failures(study, table.failures)
        if watch is not None:
            watch(epochs, record_of(trial))
        slot = slot_of(trial)
        # One process draws: the one that measures the first slot of a generation.
        if (
            slot is not None
            and slot.index == 0
            and (slot.generation == 0 or time.monotonic() - drawn > _SELDOM)
        ):
            draw(epochs)
            drawn = time.monotonic()

    def leave(trial: FrozenTrial) -> None:
        """Stop where no trial of the generation waits: whoever asks for one makes its own.

        Such a trial is stored gene by gene; at the end of the study it would be one too many.
        """
        slot = slot_of(trial)
        if slot is not None and slot.index < table.population - _NEAR_END:
            return
        if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.stop()

    def told(_: Study, trial: FrozenTrial) -> None:
        """Do all that follows a trial; Optuna copies it for each function that it calls."""
        evolution(study, trial)
        after(trial)
        leave(trial)

    epochs.advance()
    while not epochs.finished:
        with suppress(SearchOver):  # somebody else may finish the last slot at any moment
            written = epochs.sampler.write_due(study)
            if not written and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                time.sleep(_PAUSE)
                epochs.advance()
                continue
            study.optimize(
                PruningObjective(epochs),
                callbacks=[told],
                catch=(TrialFailed,),
            )


def _refuse_failures(study: Study, allowed: float) -> None:
    """Stop a study of which too many trials fail.

    Raises:
        StudyError: With the reasons, counted.
    """
    reasons = failures_of(study)
    trials = study.get_trials(deepcopy=False)
    failed, finished = reasons.total(), sum(trial.state.is_finished() for trial in trials)
    if failed >= _FEWEST_FAILURES and failed > allowed * finished:
        told = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        raise StudyError(
            f"{failed} of {finished} trials failed: {told}.",
            hint="Mend the cause, then continue with `resume`; search.failures says how many may.",
        )


def conclude(epochs: Epochs) -> None:
    """Choose and measure the finalists, unless that was done; of several processes one does."""
    if storage.RESULTS in epochs.study.user_attrs:
        _show(epochs)  # whoever made them may have been killed before this
        return

    def make() -> float:
        draw(epochs)
        results = Finish(epochs).run()
        _show(epochs)
        return float(results["chosen"]["accuracy_proxy"])

    epochs.conclude(make)


def _show(epochs: Epochs) -> None:
    attach(epochs.study, epochs.vault)
    draw(epochs)
