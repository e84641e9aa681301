"""Our search inside a plain Optuna script: ``study.optimize`` without the runner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.errors import SpecError, StudyError
from effllava_optuna.samplers import reap
from effllava_optuna.study import artifacts, storage
from effllava_optuna.study.evolution import Epochs
from effllava_optuna.study.spec import StudySpec, read_spec
from effllava_optuna.study.workbench import Workbench

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study


def prepare(spec: StudySpec | str | Path, study: Study) -> Epochs:
    """Make ``study`` one of ours: load the model, calibrate, give it our sampler.

    A study that was prepared before goes on where it stands.

    Args:
        spec: A study file, or what one says; the name in it gives way to that of ``study``.
        study: With directions ``["maximize", "minimize"]``, over SQLite; with any other storage
            the spec must name a place for ``study.artifacts``.

    Returns:
        What `PruningObjective` and `ProjectorEvolution` are made from.

    Raises:
        SpecError: The file is no study, or not the one that the study was prepared with.
        StudyError: The directions are others, or there is no place for artifacts.
    """
    told = spec if isinstance(spec, StudySpec) else read_spec(spec)
    table = told.study.model_copy(update={"name": study.study_name})
    told = told.model_copy(update={"study": table})
    directions = [direction.name.lower() for direction in study.directions]
    if directions != storage.DIRECTIONS:
        raise StudyError(
            f"Study {study.study_name!r} has directions {directions}.",
            hint=f"Create it with directions={storage.DIRECTIONS}.",
        )
    if storage.SPEC in study.user_attrs:
        changed = storage.difference(storage.spec_of(study), told)
        if changed is not None:
            raise SpecError(
                f"Study {study.study_name!r}: {changed}.", hint="Use the spec it began with."
            )
    url = storage.url_of(study)
    store = artifacts.store_for(url or "", told)
    bench = Workbench(told)
    if storage.SPEC not in study.user_attrs:
        storage.adopt_study(study, told)
    epochs = Epochs(study, bench, artifacts.Vault(store), endless=True)
    reap(study)
    epochs.open()
    study.sampler = epochs.sampler
    return epochs
