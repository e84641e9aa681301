"""Every access of the samplers to private parts of Optuna, in one module.

Written for Optuna 5; `tests/samplers/test_optuna_internals.py` names what another version lacks.
A template trial is the only way to create a trial together with its parameters and attributes in
one transaction, and `Study` has no public method that returns the created trial.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any, TypeAlias

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.samplers import GPSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.distributions import IntDistribution
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.study._frozen import FrozenStudy

AnyTrial: TypeAlias = Trial | FrozenTrial

# System attributes of Optuna.
CONSTRAINTS = "constraints"  # a list: the form that optuna-dashboard reads
FIXED_PARAMS = "fixed_params"  # written by `Study.enqueue_trial`
NSGAII_GENERATION = "NSGAIISampler:generation"  # NSGAIISampler takes no parents without it

# System attributes of ours.
GENOME = "genome"  # parameters of a trial that got its slot after its creation
OWN_ATTRS = "own_attrs"  # the user attributes that a user enqueued a trial with
OWNER = "owner"  # the process that evaluates a trial
VOID = "void"  # why a FAIL does not count as a failure of the genome


def create_study_in_memory(n_objectives: int, sampler: BaseSampler) -> Study:
    """Create a study that minimises its objectives, without a message in the log."""
    logger = logging.getLogger("optuna.storages._in_memory")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        return optuna.create_study(directions=["minimize"] * n_objectives, sampler=sampler)
    finally:
        logger.setLevel(level)


def create_gp_sampler(seed: int) -> GPSampler:
    """Create a sampler that proposes by a Gaussian process, for a deterministic objective.

    Below four trials it draws uniformly. The expected improvement of the hypervolume is the mean
    of 32 samples instead of 128, and its maximum is searched from the best of 512 points instead
    of 2048: for 20 proposals after 240 trials that takes a quarter of the time.
    """
    with warnings.catch_warnings():  # `deterministic_objective` is experimental
        warnings.simplefilter("ignore", ExperimentalWarning)
        sampler = GPSampler(
            seed=seed,
            n_startup_trials=4,
            deterministic_objective=True,
            warn_independent_sampling=False,
        )
    sampler._n_qmc_samples_ehvi, sampler._n_preliminary_samples = 32, 512
    return sampler


def storage_of(study: Study) -> BaseStorage:
    """Return the storage of a study."""
    return study._storage


def study_id_of(study: Study | FrozenStudy) -> int:
    """Return the id of a study, unique in its storage."""
    return study._study_id


def trial_id_of(trial: AnyTrial) -> int:
    """Return the id of a trial: unique in its storage; its number is unique in its study."""
    return trial._trial_id


def create_waiting_trial(
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
    return storage_of(study).create_new_trial(study_id_of(study), template_trial=template)


def write_user_attrs(study: Study, trial: AnyTrial, attrs: Mapping[str, Any]) -> None:
    """Write user attributes of a trial, in a database in one transaction.

    Uses the method `set_trial_user_attrs` of the storage if it has one. Other storages write the
    attributes one by one, in their order.

    Raises:
        UpdateFinishedTrialError: The trial has ended.
    """
    storage, trial_id = storage_of(study), trial_id_of(trial)
    backend = getattr(storage, "_backend", storage)
    write_all = getattr(backend, "set_trial_user_attrs", None)
    if write_all is not None:
        write_all(trial_id, attrs)
        return
    if not isinstance(backend, RDBStorage):
        for key, value in attrs.items():
            storage.set_trial_user_attr(trial_id, key, value)
        return
    from optuna.storages._rdb.models import TrialUserAttributeModel
    from optuna.storages._rdb.storage import _create_scoped_session

    with _create_scoped_session(backend.scoped_session) as session:
        for key, value in attrs.items():
            backend._set_trial_attr_without_commit(
                session, TrialUserAttributeModel, trial_id, key, value
            )


def set_user_attrs(study: Study, trial: FrozenTrial, attrs: Mapping[str, Any]) -> None:
    """Write user attributes of a trial that a sampler is preparing.

    They are also set on ``trial``: ``optuna.Trial`` shows its objective a copy of the attributes
    that was read before the sampler saw the trial.
    """
    write_user_attrs(study, trial, attrs)
    trial.user_attrs.update(attrs)


def set_system_attrs(study: Study, trial: FrozenTrial, attrs: Mapping[str, Any]) -> None:
    """Write system attributes of a trial in their order, each in a transaction of its own."""
    for key, value in attrs.items():
        storage_of(study).set_trial_system_attr(trial_id_of(trial), key, value)
    trial.system_attrs.update(attrs)


def start_trial(study: Study, trial: FrozenTrial) -> bool:
    """Set a WAITING trial to RUNNING, as `Study.ask` does; false if another worker was faster."""
    return _set_state(study, trial, TrialState.RUNNING)


def mark_void(study: Study, trial: AnyTrial, reason: str) -> None:
    """Store why the coming FAIL of a trial does not count as a failure of its genome."""
    storage_of(study).set_trial_system_attr(trial_id_of(trial), VOID, reason)


def fail_trial(study: Study, trial: FrozenTrial, *, void: str | None = None) -> bool:
    """Set a trial to FAIL; false if it had ended already.

    Args:
        study: The study.
        trial: A trial that no other worker is changing, except towards its end.
        void: Why this is not a failure of the genome; None if it is one.
    """
    try:
        if void is not None:
            mark_void(study, trial, void)
            # The user attribute is for the reader of the dashboard.
            storage_of(study).set_trial_user_attr(trial_id_of(trial), VOID, void)
    except UpdateFinishedTrialError:
        return False
    return _set_state(study, trial, TrialState.FAIL)


def _set_state(study: Study, trial: FrozenTrial, state: TrialState) -> bool:
    try:
        return storage_of(study).set_trial_state_values(trial_id_of(trial), state=state)
    except UpdateFinishedTrialError:
        return False
