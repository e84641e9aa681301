"""The control study: what belongs to each epoch, published exactly once.

Epoch 0 is the calibration; every later epoch has a projector, a weight state and a space. An
attempt to publish an epoch is a trial of the control study, created in one transaction together
with its owner. The lowest-numbered running attempt of an epoch leads, and the others wait.
COMPLETE publishes, and every worker reads the lowest-numbered COMPLETE attempt. An attempt whose
process has died, or whose lease has run out, is failed and replaced by a worker that waits for it.
If that process was only slow, it publishes nothing: a failed trial cannot be completed.

Anybody may end an attempt, on the dashboard or in a script, with any state. Only one that has been
marked by its process counts, and that process publishes what it has created in another attempt.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from effllava_optuna.errors import StudyError
from effllava_optuna.logging import get_logger
from effllava_optuna.samplers import (
    leases_of,
    owner_alive,
    renew_lease,
    slot_of,
    this_process,
)
from effllava_optuna.storage.artifact_store import attach_artifact
from effllava_optuna.storage.names import CONTROL, control_name, is_control_name
from effllava_optuna.storage.storage_internals import (
    complete_trial,
    create_running_trial,
    fail_trial,
    storage_of,
    write_user_attrs,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna import Study
    from optuna.storages import BaseStorage

_logger = get_logger(__name__)
_PUBLISHED = "published"  # user attribute of an attempt: everything else is written
_STUDY = "study"  # user attribute of a control study: the name of its study
_MIN_PAUSE, _MAX_PAUSE = 0.05, 1.0  # seconds between two reads


@dataclass(frozen=True, slots=True)
class EpochPublication:
    """What an attempt publishes for an epoch.

    Attributes:
        value: Value of the control trial: cross-fitted accuracy on the proxy, in [0, 1].
        attributes: User attributes of the control trial, JSON by name.
        artifact: Name of the tensors in the artifact store; None if the epoch has none.
        label: Name of the artifact on the dashboard.
        tables: Name of the epoch's compensation tables in the artifact store; None: those of the
            calibration.
    """

    value: float
    attributes: Mapping[str, Any]
    artifact: str | None
    label: str = ""
    tables: str | None = None


def create_control_study(study: Study) -> None:
    """Create the control study of a new study, and store its name in the study.

    A control study remains if its study is deleted. So a name is taken only if the control study
    that has it is empty. Several processes may create that of one study.
    """
    for number in itertools.count(1):
        name = control_name(study.study_name, number)
        control_study = ControlStudy(storage_of(study), name)
        if not control_study.study.get_trials(deepcopy=False):
            break
        if CONTROL in study.user_attrs:
            return  # another process has stored it, and then published in it
    control_study.study.set_user_attr(_STUDY, study.study_name)
    study.set_user_attr(CONTROL, name)


def open_control_study(study: Study) -> ControlStudy:
    """Open the control study of a study to publish in it.

    Raises:
        StudyError: It is missing, or belongs to the study that this one is a copy of.
    """
    name, control = control_study_name(study), load_control_study(study)
    if control is None or not published_epochs(control):
        trials = study.get_trials(deepcopy=False)
        if any(slot_of(trial) is not None for trial in trials):
            raise StudyError(
                f"The control study {name!r}, which belongs to study {study.study_name!r}, is "
                "missing.",
                hint="Restore it from a copy of the database, or start a new study.",
            )
    control_study = ControlStudy(storage_of(study), name)
    owner = control_study.study.user_attrs.get(_STUDY, study.study_name)
    if owner != study.study_name:
        if _control_of(storage_of(study), owner) == name:
            raise StudyError(
                f"Study {study.study_name!r} is a copy of study {owner!r}: both have the control "
                f"study {name!r}.",
                hint=f"Continue {owner!r}, or start a new study.",
            )
        control_study.study.set_user_attr(_STUDY, study.study_name)  # it was renamed
    return control_study


def _control_of(storage: BaseStorage, study_name: str) -> str | None:
    """Return the name of the control study of another study; None if there is no such study."""
    try:
        study_id = storage.get_study_id_from_name(study_name)
    except KeyError:
        return None
    name: str = storage.get_study_user_attrs(study_id).get(CONTROL, control_name(study_name))
    return name


def study_was_deleted(name: str) -> StudyError:
    """Return the error about a study that was deleted while this process worked on it."""
    return StudyError(
        f"Study {name!r} was deleted while this process worked on it.",
        hint="Start it again with `run`.",
    )


def control_study_name(study: Study) -> str:
    """Return the name of the control study of a study."""
    name: str = study.user_attrs.get(CONTROL, control_name(study.study_name))
    return name


def load_control_study(study: Study) -> Study | None:
    """Load the control study of a study; None if it does not exist."""
    name = control_study_name(study)
    sampler = optuna.samplers.RandomSampler()
    try:
        return optuna.load_study(storage=storage_of(study), study_name=name, sampler=sampler)
    except KeyError:
        return None


def left_control_studies(storage: BaseStorage) -> list[str]:
    """Return the names of the control studies whose study was deleted."""
    studies = storage.get_all_studies()
    used = {
        study.user_attrs.get(CONTROL, control_name(study.study_name))
        for study in studies
        if not is_control_name(study.study_name)
    }
    names = [study.study_name for study in studies if _STUDY in study.user_attrs]
    return [name for name in names if name not in used]


def published_epochs(control: Study) -> list[FrozenTrial]:
    """Return the effective attempt of each epoch, from 0, up to the first gap."""
    return _until_gap(_first_complete(control))


def latency_factor_of(epoch: FrozenTrial) -> float:
    """Return the share of the savings in the latency table that a published epoch expects.

    It is 1 in epoch 0, and in the epochs of versions that did not correct the table.
    """
    return float(epoch.user_attrs.get("latency_factor", 1.0))


def _until_gap(attempts: Mapping[int, FrozenTrial]) -> list[FrozenTrial]:
    return [
        attempts[epoch] for epoch in itertools.takewhile(attempts.__contains__, itertools.count())
    ]


def _first_complete(control: Study) -> dict[int, FrozenTrial]:
    """Return the lowest-numbered COMPLETE attempt by epoch."""
    first: dict[int, FrozenTrial] = {}
    for attempt in control.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if _is_published(attempt):
            first.setdefault(int(attempt.params["epoch"]), attempt)
    return first


def _is_published(attempt: FrozenTrial) -> bool:
    """Return whether an attempt was completed by its process, not by somebody else."""
    # In older studies no attempt is marked, and all epochs have an artifact.
    marked = not {_PUBLISHED, "artifact"}.isdisjoint(attempt.user_attrs)
    return attempt.state == TrialState.COMPLETE and marked


def dead_attempts(control: Study) -> list[FrozenTrial]:
    """Return the running attempts whose process has died, without changing them."""
    running = control.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return _dead(control, running) if running else []


def _dead(control: Study, running: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    leases = leases_of(control)
    owned = [attempt for attempt in running if "owner" in attempt.user_attrs]
    return [
        attempt for attempt in owned if owner_alive(attempt.user_attrs["owner"], leases) is False
    ]


class ControlStudy:
    """Publishes and reads the epochs of one study.

    Args:
        storage: Storage of the study.
        name: Name of the control study; it is created if it does not exist.
    """

    def __init__(self, storage: BaseStorage, name: str) -> None:
        sampler = optuna.samplers.RandomSampler()
        try:  # without a write, which a read-only storage refuses
            self._study = optuna.load_study(storage=storage, study_name=name, sampler=sampler)
        except KeyError:
            self._study = optuna.create_study(
                storage=storage,
                study_name=name,
                direction="maximize",
                sampler=sampler,
                load_if_exists=True,  # another process may create it first
            )
        self._published: dict[int, FrozenTrial] = {}  # a cache: published epochs never change

    @property
    def study(self) -> Study:
        """Return the control study."""
        return self._study

    def check_study(self, study: Study) -> None:
        """Check that a study is the one of this control study, not one that got its id.

        Raises:
            StudyError: The study was deleted.
        """
        try:
            unchanged = control_study_name(study) == self._study.study_name
        except KeyError:
            unchanged = False
        if not unchanged:
            raise study_was_deleted(self._study.user_attrs.get(_STUDY, self._study.study_name))

    def published_epochs(self) -> list[FrozenTrial]:
        """Return the effective attempt of each epoch, from 0, up to the first gap."""
        self._published |= _first_complete(self._study)
        return _until_gap(self._published)

    def published_attempt(self, epoch: int) -> FrozenTrial | None:
        """Return the attempt that published an epoch; None before that."""
        if epoch not in self._published:
            self._published |= _first_complete(self._study)
        return self._published.get(epoch)

    def publish_once(self, epoch: int, create: Callable[[], EpochPublication]) -> FrozenTrial:
        """Return the attempt that published an epoch, publishing it if no other worker does.

        Args:
            epoch: The epoch.
            create: Creates what is published; called once, by a process whose attempt leads.
        """
        pause, publication = _MIN_PAUSE, None
        while (published := self.published_attempt(epoch)) is None:
            attempt = self._start_attempt(epoch)
            if attempt is None:
                time.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE)
                continue
            try:
                publication = publication or create()
                self._complete(attempt, publication)
            except UpdateFinishedTrialError:
                _logger.warning(
                    f"The attempt of this process to publish epoch {epoch} was ended by another "
                    "process or on the dashboard."
                )
            except BaseException:
                fail_trial(self._study, attempt)
                raise
        return published

    def fail_dead_attempts(self) -> list[int]:
        """Fail the attempts whose process has died, and return their numbers."""
        dead = dead_attempts(self._study)
        for attempt in dead:
            fail_trial(self._study, attempt)
        return [attempt.number for attempt in dead]

    def _attempts(self, epoch: int) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.params.get("epoch") == epoch]

    def _start_attempt(self, epoch: int) -> FrozenTrial | None:
        """Start an attempt at an epoch; None if another process has a running one."""
        attempts = self._attempts(epoch)
        running = [attempt for attempt in attempts if attempt.state == TrialState.RUNNING]
        if running:
            dead = _dead(self._study, running)
            for attempt in dead:
                fail_trial(self._study, attempt)
            if len(dead) < len(running):
                return None
        renew_lease(self._study)
        params = {"epoch": epoch, "attempt": len(attempts)}
        started = create_running_trial(self._study, params, {"owner": this_process()})
        rivals = [
            attempt.number
            for attempt in self._attempts(epoch)
            if attempt.state == TrialState.RUNNING or _is_published(attempt)
        ]
        if started.number != min(rivals):
            fail_trial(self._study, started)
            return None
        return started

    def _complete(self, attempt: FrozenTrial, publication: EpochPublication) -> None:
        attributes = {**publication.attributes, _PUBLISHED: True}
        files = {
            "artifact": (publication.artifact, publication.label),
            "tables": (publication.tables, "compensation.safetensors"),
        }
        attributes |= {kind: name for kind, (name, _) in files.items() if name is not None}
        write_user_attrs(self._study, attempt, attributes)
        for name, label in files.values():
            if name is not None:
                attach_artifact(self._study, attempt, name, label)
        complete_trial(self._study, attempt, publication.value)
