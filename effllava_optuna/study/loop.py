"""Run a study from where it stands to its end."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from effllava_optuna.errors import StudyError
from effllava_optuna.policy import Policy
from effllava_optuna.samplers import reap
from effllava_optuna.study import artifacts, storage
from effllava_optuna.study.board import draw
from effllava_optuna.study.evolution import Epochs, ProjectorEvolution, silent
from effllava_optuna.study.finish import Finish
from effllava_optuna.study.objective import PruningObjective
from effllava_optuna.study.records import record_of
from effllava_optuna.study.workbench import Workbench
from effllava_optuna.surgery import WHOLE, export, projecting, sliced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna import Study
    from optuna.trial import FrozenTrial

    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.study.spec import StudySpec
    from effllava_optuna.study.workbench import Say
    from effllava_optuna.surgery import Verified

    Watch = Callable[[Epochs, TrialRecord], None]


@contextmanager
def begun(spec: StudySpec, url: str, say: Say = silent) -> Iterator[Epochs]:
    """Begin a study: nothing is written before its model and its samples are loaded.

    Args:
        spec: What it is told.
        url: Of its database, made if need be; artifacts lie beside it.
        say: Is told what is under way.

    Raises:
        StudyError: There is a study of that name.
    """
    file = storage.sqlite_file(url)
    if file is not None and file.is_file():
        storage.refuse_existing(storage.open_storage(url), spec.study.name)
    say("loading the model", 0.0)
    with Workbench(spec) as bench:
        study = storage.create_study(storage.open_storage(url, create=True), spec)
        with _ready(study, url, bench, say) as epochs:
            yield epochs


@contextmanager
def continued(study: Study, url: str, say: Say = silent) -> Iterator[Epochs]:
    """Load the model and the samples of a study that exists, and adopt its calibration."""
    say("loading the model", 0.0)
    with Workbench(storage.spec_of(study)) as bench, _ready(study, url, bench, say) as epochs:
        yield epochs


@contextmanager
def _ready(study: Study, url: str, bench: Workbench, say: Say) -> Iterator[Epochs]:
    vault = artifacts.Vault(artifacts.directory_for(url, bench.spec))
    epochs = Epochs(study, bench, vault, say)
    epochs.open()
    study.sampler = epochs.sampler
    yield epochs


def search(epochs: Epochs, watch: Watch | None = None) -> None:
    """Measure what is still to be measured, epoch by epoch."""
    study, evolution = epochs.study, ProjectorEvolution(epochs)
    reap(study)
    drawn = epochs.epoch

    def after(_: Study, trial: FrozenTrial) -> None:
        nonlocal drawn
        if watch is not None:
            watch(epochs, record_of(trial))
        if epochs.epoch != drawn:
            drawn = epochs.epoch
            draw(epochs)

    epochs.advance()
    while not epochs.finished:
        epochs.sampler.write_due(study)
        study.optimize(
            PruningObjective(epochs), callbacks=[evolution, after], catch=(RuntimeError,)
        )
    draw(epochs)


def conclude(epochs: Epochs) -> None:
    """Choose and measure the finalists, unless that was done."""
    if storage.RESULTS not in epochs.study.user_attrs:
        Finish(epochs).run()
        draw(epochs)


def write_checkpoint(
    epochs: Epochs, number: int, directory: str | Path, *, overwrite: bool
) -> Verified:
    """Export the policy of a trial with its own basis, and verify it.

    Raises:
        StudyError: There is no such trial, or it was not measured.
        ExportError: The directory cannot be used, or the checkpoint does not come back.
    """
    trials = epochs.study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials) or not record_of(trials[number]).measured:
        raise StudyError(
            f"Trial {number} of {epochs.study.study_name!r} was not measured.",
            hint="Choose a complete trial; `status` lists the front.",
        )
    trial = record_of(trials[number])
    basis = epochs.basis(trial.basis)
    policy = Policy.of(epochs.bench.anatomy, trial.keep)
    with projecting(epochs.bench.loaded, basis.projectors[WHOLE]) as loaded:
        pruned = sliced(loaded, policy, basis.order, basis.refits[WHOLE])
    verified = export(pruned, directory, overwrite=overwrite)
    epochs.study.set_user_attr(storage.EXPORTED, {"trial": number, "directory": str(directory)})
    return verified
