"""An open study: everything that one process needs to search it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.calibration.calibration import Calibration
from effllava_optuna.calibration.calibration_run import calibrate
from effllava_optuna.calibration.environment import check_environment
from effllava_optuna.calibration.stage_callback import silent
from effllava_optuna.errors import StudyError
from effllava_optuna.objectives import describe_task, groups_of, number_groups
from effllava_optuna.policy import Policy
from effllava_optuna.search.budget import budget_of
from effllava_optuna.search.epochs.epoch_registry import Epoch, EpochRegistry
from effllava_optuna.search.epochs.schedule import EpochSchedule
from effllava_optuna.search.epochs.seeding import first_seeds
from effllava_optuna.search.evaluator import Evaluator
from effllava_optuna.search.sampler_factory import make_sampler
from effllava_optuna.storage.control_study import EpochPublication, open_control_study
from effllava_optuna.storage.database import configure_sqlite
from effllava_optuna.storage.names import STRUCTURE, TASK
from effllava_optuna.storage.storage_internals import storage_of
from effllava_optuna.surgery import arranged

if TYPE_CHECKING:
    from optuna import Study

    from effllava_optuna.calibration.inputs import StudyInputs
    from effllava_optuna.calibration.stage_callback import StageCallback
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.objectives import Stopwatch
    from effllava_optuna.policy import CostModel
    from effllava_optuna.samplers import EpochSampler
    from effllava_optuna.storage.artifact_store import ArtifactStore
    from effllava_optuna.storage.control_study import ControlStudy


@dataclass(frozen=True)
class SearchSession:
    """An open study in this process; close it, or use it in a ``with`` statement.

    Attributes:
        study: The study.
        evaluator: Measures policies.
        epochs: The published epochs.
        schedule: Opens epochs.
        costs: What policies cost in epoch 0, and the limit.
        sampler: The sampler of the study.
        report_stage: Called with the current stage and its finished share.
        resources: Undone by `close`.
    """

    study: Study
    evaluator: Evaluator
    epochs: EpochRegistry
    schedule: EpochSchedule
    costs: CostModel
    sampler: EpochSampler
    report_stage: StageCallback
    resources: ExitStack

    @property
    def config(self) -> StudyConfig:
        """Return the study file."""
        return self.evaluator.config

    def close(self) -> None:
        """Restore the order of the model's units."""
        self.resources.close()

    def __enter__(self) -> SearchSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_session(
    study: Study,
    inputs: StudyInputs,
    artifact_store: ArtifactStore,
    report_stage: StageCallback = silent,
    *,
    endless: bool = False,
    force: bool = False,
) -> SearchSession:
    """Open a study in this process: calibrate it, or read the published calibration.

    Args:
        study: The study; its sampler is set.
        inputs: The model, the task and the encoded proxy set.
        artifact_store: Where tensors are stored.
        report_stage: Called with the current stage and its finished share.
        endless: See `EpochSchedule`.
        force: Whether to continue although versions, machine, weights or samples have changed.

    Raises:
        StudyError: The study belongs to another model, what it depends on has changed, or its
            control study is missing.
        ConfigError: No policy is within the budget, or ``quality.term`` cannot be used.
    """
    configure_sqlite(storage_of(study))
    _check_structure(study, inputs)
    check_environment(study, inputs, force=force)
    _record_task(study, inputs)
    if inputs.functions.term is not None:  # before hours of search: the dense model has a quality
        inputs.functions.term(Policy.dense(inputs.structure), inputs.loaded)
    control_study = open_control_study(study)
    stopwatch = inputs.stopwatch()
    calibration, digest = _calibration(
        control_study, inputs, stopwatch, artifact_store, report_stage
    )
    inputs = inputs.with_answers(calibration.answers)  # before `arranged` changes the model
    costs = budget_of(inputs.config, calibration)
    resources = ExitStack()
    loaded = resources.enter_context(arranged(inputs.loaded, calibration.ranking))
    evaluator = Evaluator(
        inputs=inputs,
        calibration=calibration,
        loaded=loaded,
        stopwatch=stopwatch.on(loaded),
    )
    seeds, centre = first_seeds(evaluator, costs)
    first = Epoch(
        space=evaluator.first_space(),
        weight_state=calibration.weight_state(digest),
        seeds=seeds,
        centre=centre,
    )
    epochs = EpochRegistry(control_study, artifact_store, first)
    schedule = EpochSchedule(
        study=study,
        evaluator=evaluator,
        epochs=epochs,
        report_stage=report_stage,
        endless=endless,
    )
    sampler = make_sampler(inputs, calibration, lambda _: schedule.view())
    sampler.user_space = lambda _: schedule.view_of(epochs.latest)
    study.sampler = sampler
    return SearchSession(
        study=study,
        evaluator=evaluator,
        epochs=epochs,
        schedule=schedule,
        costs=costs,
        sampler=sampler,
        report_stage=report_stage,
        resources=resources,
    )


def _check_structure(study: Study, inputs: StudyInputs) -> None:
    stored, structure = study.user_attrs.get(STRUCTURE), inputs.structure.to_json()
    if stored is None:
        study.set_user_attr(STRUCTURE, structure)
    elif stored != structure:
        raise StudyError(
            f"Study {study.study_name!r} belongs to another model.",
            hint="Use the checkpoint that the study began with.",
        )


def _record_task(study: Study, inputs: StudyInputs) -> None:
    """Store what the study is measured on: the proxy samples, their groups, the metrics."""
    if TASK in study.user_attrs:
        return
    groups = number_groups(groups_of(inputs.proxy.scored))  # of the hits of a trial, in order
    config = inputs.config
    described = describe_task(
        inputs.task, config.quality.measure, generate=config.task.measure == "generation"
    )
    study.set_user_attr(TASK, described | {"groups": groups})


def _calibration(
    control_study: ControlStudy,
    inputs: StudyInputs,
    stopwatch: Stopwatch,
    artifact_store: ArtifactStore,
    report_stage: StageCallback,
) -> tuple[Calibration, str]:
    """Return the published calibration and its digest; calibrate if there is none."""
    made: dict[str, Calibration] = {}

    def publication() -> EpochPublication:
        calibration = calibrate(
            inputs, stopwatch, report_stage, lambda timed: budget_of(inputs.config, timed)
        )
        published = calibration_publication(calibration, artifact_store)
        made[str(published.artifact)] = calibration
        return published

    facts = control_study.publish_once(0, publication).user_attrs
    digest: str = facts["artifact"]
    if digest in made:
        return made[digest], digest
    stored = artifact_store.read_tensors(digest)
    return Calibration.restored(inputs.structure, facts["calibration"], stored), digest


def calibration_publication(
    calibration: Calibration, artifact_store: ArtifactStore
) -> EpochPublication:
    """Store the tensors of a calibration, and return what the control study publishes."""
    facts: dict[str, Any] = {"calibration": calibration.facts()}
    artifact = artifact_store.write_tensors(calibration.tensors())
    return EpochPublication(calibration.dense.accuracy, facts, artifact, "calibration.safetensors")
