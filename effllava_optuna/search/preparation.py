"""The search in a plain Optuna script: ``study.optimize`` without the runner."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.calibration.stage_callback import silent
from effllava_optuna.config.loading import load_config
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.errors import ConfigError, StudyError
from effllava_optuna.samplers import fail_lost_trials
from effllava_optuna.search.session import open_session
from effllava_optuna.search.study_answers import published_answers
from effllava_optuna.storage.artifact_store import ArtifactStore, artifact_backend_of
from effllava_optuna.storage.names import CONFIG, DIRECTIONS
from effllava_optuna.storage.studies import (
    config_of,
    first_difference,
    refuse_older_version,
    store_config,
)
from effllava_optuna.storage.urls import sqlite_url_of

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study

    from effllava_optuna.search.session import SearchSession


def prepare(config: StudyConfig | str | Path, study: Study) -> SearchSession:
    """Load the model, calibrate, and give ``study`` our sampler.

    A study that was prepared before continues from its current state.

    Args:
        config: A study file, or its path; the name of ``study`` takes precedence over its name.
        study: With directions ``["maximize", "minimize"]``, in SQLite; with any other storage the
            study file must set ``study.artifacts``.

    Returns:
        The open study, from which `PruningObjective` and `EpochCallback` are made.

    Raises:
        ConfigError: The study file is not valid, or not the one that the study began with.
        StudyError: The directions differ, or no directory of artifacts is known.
    """
    config = config if isinstance(config, StudyConfig) else load_config(config)
    table = config.study.model_copy(update={"name": study.study_name})
    config = config.model_copy(update={"study": table})
    directions = [direction.name.lower() for direction in study.directions]
    if directions != DIRECTIONS:
        raise StudyError(
            f"Study {study.study_name!r} has directions {directions}.",
            hint=f"Create it with directions={DIRECTIONS}.",
        )
    refuse_older_version(study)
    if CONFIG in study.user_attrs:
        changed = first_difference(config_of(study), config)
        if changed is not None:
            raise ConfigError(
                f"Study {study.study_name!r}: {changed}.",
                hint="Use the study file that it began with.",
            )
    artifact_store = ArtifactStore(artifact_backend_of(sqlite_url_of(study) or "", config))
    with ExitStack() as stack:
        inputs = stack.enter_context(study_inputs(config, answers=published_answers(study)))
        if CONFIG not in study.user_attrs:
            inputs.check_final_samples(silent)
            store_config(study, inputs.config)
        fail_lost_trials(study)
        session = open_session(study, inputs, artifact_store, endless=True)
        session.resources.push(stack.pop_all())
    return session
