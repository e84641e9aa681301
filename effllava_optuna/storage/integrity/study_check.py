"""Check whether everything that belongs to a study is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.trial import TrialState

from effllava_optuna.config.validation_messages import cure_of_difference
from effllava_optuna.errors import EffllavaError
from effllava_optuna.policy import ModelStructure
from effllava_optuna.samplers import effective_trials, lost_trials, slot_of
from effllava_optuna.storage.artifact_store import artifact_backend_of
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.control_study import (
    dead_attempts,
    left_control_studies,
    load_control_study,
    published_epochs,
)
from effllava_optuna.storage.integrity.artifact_check import check_artifacts
from effllava_optuna.storage.integrity.check_result import CheckResult, listed
from effllava_optuna.storage.integrity.export_check import check_export
from effllava_optuna.storage.integrity.study_repair import unfinished_files
from effllava_optuna.storage.names import CALIBRATION_FORMAT, STRUCTURE
from effllava_optuna.storage.storage_internals import storage_of
from effllava_optuna.storage.studies import first_difference, open_study

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.storage.location import StudyLocation

_REPAIR = "Repair it with `doctor --repair`."


def check_study(location: StudyLocation) -> list[CheckResult]:
    """Check whether everything that belongs to a study is stored, without changing it."""
    try:
        if location.file is not None and not location.exists():
            return [CheckResult("study", "ok", f"{location.name!r} has not begun")]
        study = open_study(open_storage(location.url), location.name)
        config = location.config_of(study)
    except EffllavaError as error:
        return [CheckResult("study", "fault", error.message, error.hint)]
    trials = study.get_trials(deepcopy=False)
    results = [_check_config(location, config), _check_structure(study)]
    results += _check_control_study(study, config)
    results += _check_left_control_studies(study)
    results.append(_check_lost("trials of ended processes", lost_trials(study, trials)))
    results.append(_check_duplicates(trials))
    try:
        results += check_artifacts(study, artifact_backend_of(location.url, config))
    except EffllavaError as error:
        results.append(CheckResult("artifacts", "fault", error.message, error.hint))
    results += check_export(study, config, location)
    unfinished = unfinished_files(location, config)
    results.append(
        CheckResult("unfinished files", "warning", listed(unfinished), _REPAIR)
        if unfinished
        else CheckResult("unfinished files", "ok", "there are none")
    )
    return results


def _check_config(location: StudyLocation, config: StudyConfig) -> CheckResult:
    given = location.config
    difference = None if given is None else first_difference(config, given)
    if difference is None:
        planned = f"{location.name!r}, {config.search.trials} trials planned"
        return CheckResult("study", "ok", planned)
    cure = cure_of_difference(location.url, location.name)
    return CheckResult("study", "fault", difference, cure)


def _check_structure(study: Study) -> CheckResult:
    document = study.user_attrs.get(STRUCTURE)
    if document is None:
        return CheckResult("structure", "warning", "not stored yet", "Continue with `resume`.")
    try:
        components = ModelStructure.from_json(document).components
    except (EffllavaError, KeyError, TypeError, ValueError, AttributeError) as error:
        return CheckResult("structure", "fault", f"cannot be read: {error}", "Start a new study.")
    return CheckResult("structure", "ok", f"{len(components)} components")


def _check_control_study(study: Study, config: StudyConfig) -> list[CheckResult]:
    control = load_control_study(study)
    if control is None:
        if study.get_trials(deepcopy=False):
            cure = "Restore it from a copy of the database, or start a new study."
            return [CheckResult("control study", "fault", "is missing", cure)]
        cure = "Continue with `resume`."
        return [CheckResult("control study", "warning", "does not exist yet", cure)]
    epochs = published_epochs(control)
    if not epochs:
        cure = "Continue with `resume`: it calibrates again."
        return [CheckResult("control study", "warning", "nothing is published yet", cure)]
    n_epochs = min(len(epochs), config.search.epochs)
    results = [CheckResult("control study", "ok", f"{n_epochs} epochs are published")]
    stored_format = epochs[0].user_attrs.get("calibration", {}).get("format", 1)
    detail = f"format {stored_format}; this version reads {CALIBRATION_FORMAT}"
    if stored_format == CALIBRATION_FORMAT:
        results.append(CheckResult("calibration", "ok", detail))
    else:
        cure = "Use the version that began the study, or start a new study."
        results.append(CheckResult("calibration", "fault", detail, cure))
    return [*results, _check_lost("attempts of ended processes", dead_attempts(control))]


def _check_left_control_studies(study: Study) -> list[CheckResult]:
    """Warn of control studies whose study was deleted; no study will use them."""
    left = left_control_studies(storage_of(study))
    if not left:
        return []
    cure = "Delete them with `optuna delete-study`, as their studies."
    return [CheckResult("control studies", "warning", f"of deleted studies: {listed(left)}", cure)]


def _check_lost(check: str, running: Sequence[FrozenTrial]) -> CheckResult:
    if not running:
        return CheckResult(check, "ok", "none is left running")
    numbers = listed([trial.number for trial in running])
    return CheckResult(check, "warning", f"left running: {numbers}", _REPAIR)


def _check_duplicates(trials: Sequence[FrozenTrial]) -> CheckResult:
    effective = {trial.number for trial in effective_trials(trials).values()}
    duplicates = [
        trial.number
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and slot_of(trial) is not None
        and trial.number not in effective
    ]
    if not duplicates:
        return CheckResult("duplicates", "ok", "every slot was measured once")
    detail = f"measured twice: {listed(duplicates)}"
    return CheckResult("duplicates", "warning", detail, "Nothing to do: the lowest number counts.")
