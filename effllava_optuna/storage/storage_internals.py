"""Every access of the package to private parts of Optuna outside `samplers`, in one module.

Written for Optuna 5; `tests/storage/test_optuna_internals.py` names what another version lacks.
`Database` also overrides three private methods of ``RDBStorage``; the same test covers them.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._rdb import models as rdb_models
from optuna.trial import TrialState, create_trial

from effllava_optuna.samplers import storage_of, study_id_of, trial_id_of, write_user_attrs
from effllava_optuna.storage.names import CONSTRAINTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from optuna import Study
    from optuna.storages import BaseStorage, RDBStorage
    from optuna.trial import FrozenTrial, Trial

__all__ = [
    "backend_of",
    "batched_system_attrs",
    "complete_trial",
    "create_running_trial",
    "created_copy",
    "fail_trial",
    "grpc_address_of",
    "journal_file_of",
    "rdb_models",
    "set_constraint",
    "storage_is_read_only",
    "storage_of",
    "study_id_of",
    "trial_id_of",
    "trial_ids",
    "with_cache",
    "write_system_attrs",
    "write_user_attrs",
]

_MAX_PARAM = 1_000_000  # of the parameters of a trial that `create_running_trial` creates


def with_cache(database: RDBStorage) -> BaseStorage:
    """Return a database behind the cache that Optuna puts in front of its own."""
    return optuna.storages._CachedStorage(database)


def backend_of(storage: BaseStorage) -> Any:
    """Return the storage behind Optuna's cache, or the file or server of a journal storage."""
    return getattr(storage, "_backend", storage)


def storage_is_read_only(storage: BaseStorage) -> bool:
    """Return whether a storage is a file in a place that cannot be written."""
    return bool(getattr(backend_of(storage), "read_only", False))


def journal_file_of(storage: BaseStorage) -> Path | None:
    """Return the file of a journal storage; None for other storages."""
    file = getattr(backend_of(storage), "_file_path", None)
    return None if file is None else Path(file)


def grpc_address_of(storage: BaseStorage) -> str | None:
    """Return ``host:port`` of a gRPC storage proxy; None for other storages."""
    host, port = getattr(storage, "_host", None), getattr(storage, "_port", None)
    return None if host is None else f"{host}:{port}"


def created_copy(template: FrozenTrial, trial_id: int, number: int) -> FrozenTrial:
    """Return a copy of the template of a trial with the id and number that the trial got."""
    created = copy.deepcopy(template)
    created.number, created._trial_id = number, trial_id
    return created


def trial_ids(study: Study) -> dict[int, int]:
    """Return the id of each trial of a study by its number."""
    return {trial.number: trial_id_of(trial) for trial in study.get_trials(deepcopy=False)}


def set_constraint(trial: Trial, violations: Sequence[float]) -> None:
    """Write the constraint values of a running trial: infeasible if one is above zero."""
    storage_of(trial.study).set_trial_system_attr(trial_id_of(trial), CONSTRAINTS, violations)


def create_running_trial(
    study: Study, params: Mapping[str, int], user_attrs: Mapping[str, Any]
) -> FrozenTrial:
    """Create a RUNNING trial in one transaction; its parameters are in [0, 1000000]."""
    storage = storage_of(study)
    template = create_trial(
        state=TrialState.RUNNING,
        params=dict(params),
        distributions=dict.fromkeys(params, IntDistribution(0, _MAX_PARAM)),
        user_attrs=dict(user_attrs),
    )
    return storage.get_trial(storage.create_new_trial(study_id_of(study), template))


def complete_trial(study: Study, trial: FrozenTrial, value: float) -> None:
    """Complete a running trial.

    Raises:
        UpdateFinishedTrialError: Another process has ended the trial.
    """
    storage_of(study).set_trial_state_values(trial_id_of(trial), TrialState.COMPLETE, [value])


def fail_trial(study: Study, trial: FrozenTrial) -> None:
    """Fail a running trial unless another process has ended it."""
    with suppress(UpdateFinishedTrialError):
        storage_of(study).set_trial_state_values(trial_id_of(trial), TrialState.FAIL)


def write_system_attrs(study: Study, attrs: Mapping[str, Any]) -> None:
    """Write the system attributes of a study that differ from the stored ones.

    In one transaction if the storage has a method ``set_study_system_attrs``, else one by one.
    """
    storage, study_id = storage_of(study), study_id_of(study)
    stored = storage.get_study_system_attrs(study_id)
    changed = {key: value for key, value in attrs.items() if stored.get(key) != value}
    write_all = getattr(backend_of(storage), "set_study_system_attrs", None)
    if write_all is not None:
        write_all(study_id, changed)
        return
    for key, value in changed.items():
        storage.set_study_system_attr(study_id, key, value)


class _SystemAttrs:
    """A storage that collects the system attributes that are written to one study."""

    def __init__(self, storage: BaseStorage, study_id: int) -> None:
        self._stored = dict(storage.get_study_system_attrs(study_id))
        self.collected: dict[str, Any] = {}

    def get_study_system_attrs(self, _: int) -> dict[str, Any]:
        """Return the stored and the collected attributes."""
        return self._stored | self.collected

    def set_study_system_attr(self, _: int, key: str, value: Any) -> None:
        """Collect an attribute."""
        self.collected[key] = value


@contextmanager
def batched_system_attrs(study: Study) -> Iterator[Study]:
    """Yield a copy of a study whose system attributes are written together at the end.

    optuna-dashboard stores a figure in many attributes: a reader in between would see no figure,
    and each attribute would be a commit.
    """
    attrs: Any = _SystemAttrs(storage_of(study), study_id_of(study))
    batched = copy.copy(study)
    batched._storage = attrs
    yield batched
    write_system_attrs(study, attrs.collected)
