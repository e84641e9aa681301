"""Everything of the samplers that reaches behind Optuna's public interface, in one place.

Written for Optuna 5. A template trial is the only way to create a trial together with its
parameters and attributes in one transaction; ``Study`` has no public method for it that
returns what was created.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.distributions import IntDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import Study

# System attributes: three of Optuna's, and ours.
CONSTRAINTS = "constraints"  # a list here is what optuna-dashboard reads
FIXED_PARAMS = "fixed_params"  # left by `Study.enqueue_trial`
NSGAII_GENERATION = "NSGAIISampler:generation"  # without it, a trial is no parent there
GENOME = "genome"  # parameters of a trial that got its slot after it was created
OWNER = "owner"  # the process that evaluates a trial
VOID = "void"  # why a FAIL is no failure of its genome


def study_in_memory(objectives: int, sampler: BaseSampler) -> optuna.Study:
    """Make a study whose objectives are minimised, without a word in the log."""
    logger = logging.getLogger("optuna.storages._in_memory")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        return optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)
    finally:
        logger.setLevel(level)


def trial_id(trial: FrozenTrial) -> int:
    """Give the id of a trial: unique in its storage, while a number is unique in its study."""
    return trial._trial_id


def create_waiting(
    study: Study,
    *,
    params: Mapping[str, int],
    distributions: Mapping[str, IntDistribution],
    user_attrs: Mapping[str, Any],
    system_attrs: Mapping[str, Any],
) -> int:
    """Create a WAITING trial in one transaction and return its id."""
    template = optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=dict(params),
        distributions={name: distributions[name] for name in params},
        user_attrs=dict(user_attrs),
        system_attrs=dict(system_attrs),
    )
    return study._storage.create_new_trial(study._study_id, template_trial=template)


def write_user_attrs(study: Study, trial_id: int, attrs: Mapping[str, Any]) -> None:
    """Store user attributes of a trial: in one transaction in a database, else in their order.

    A storage may have a ``set_trial_user_attrs`` of its own.
    """
    backend = getattr(study._storage, "_backend", study._storage)
    at_once = getattr(backend, "set_trial_user_attrs", None)
    if at_once is not None:
        at_once(trial_id, attrs)
        return
    if not isinstance(backend, RDBStorage):
        for key, value in attrs.items():
            study._storage.set_trial_user_attr(trial_id, key, value)
        return
    from optuna.storages._rdb.models import TrialUserAttributeModel
    from optuna.storages._rdb.storage import _create_scoped_session

    with _create_scoped_session(backend.scoped_session) as session:
        for key, value in attrs.items():
            backend._set_trial_attr_without_commit(
                session, TrialUserAttributeModel, trial_id, key, value
            )


def set_user_attrs(study: Study, trial: FrozenTrial, attrs: Mapping[str, Any]) -> None:
    """Store user attributes.

    ``optuna.Trial`` shows its objective the attributes that ``trial`` had before the sampler saw
    it, so they are set there too.
    """
    write_user_attrs(study, trial._trial_id, attrs)
    trial.user_attrs.update(attrs)


def set_system_attrs(study: Study, trial: FrozenTrial, attrs: Mapping[str, Any]) -> None:
    """Store system attributes in their order, one transaction each."""
    for key, value in attrs.items():
        study._storage.set_trial_system_attr(trial._trial_id, key, value)
    trial.system_attrs.update(attrs)


def start(study: Study, trial: FrozenTrial) -> bool:
    """Move a WAITING trial to RUNNING, as ``Study.ask`` does; false where somebody was faster."""
    return _move(study, trial, TrialState.RUNNING)


def fail(study: Study, trial: FrozenTrial, *, void: str | None = None) -> bool:
    """End a trial as FAIL; false where it had ended already.

    Args:
        study: The study.
        trial: The trial; on its way to FAIL if it is in no other hands.
        void: Why this is no failure of its genome; None where it is one.
    """
    try:
        if void is not None:
            study._storage.set_trial_system_attr(trial._trial_id, VOID, void)
            study._storage.set_trial_user_attr(trial._trial_id, VOID, void)  # for people
    except UpdateFinishedTrialError:
        return False
    return _move(study, trial, TrialState.FAIL)


def _move(study: Study, trial: FrozenTrial, state: TrialState) -> bool:
    try:
        return study._storage.set_trial_state_values(trial._trial_id, state=state)
    except UpdateFinishedTrialError:
        return False
