"""Optuna still has the private parts that the package uses; a failure names what is missing."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import GrpcStorageProxy, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from effllava_optuna.storage import storage_internals as storage_internals
from effllava_optuna.storage.database import Database
from tests.samplers.private_names import PACKAGE, is_private, private_names

INTERNALS = PACKAGE / "storage" / "storage_internals.py"
SAMPLER = optuna.samplers.RandomSampler()

OWNERS: dict[str, Any] = {
    "_storage": lambda _: optuna.create_study(storage=InMemoryStorage(), sampler=SAMPLER),
    "_trial_id": lambda _: optuna.trial.create_trial(value=0.0),
    "_CachedStorage": lambda _: optuna.storages,
    "_backend": lambda path: JournalStorage(JournalFileBackend(str(path))),
    "_file_path": lambda path: JournalFileBackend(str(path)),
    "_host": lambda _: GrpcStorageProxy(host="localhost", port=1),
    "_port": lambda _: GrpcStorageProxy(host="localhost", port=1),
}
TABLES = {
    "StudyModel": ("study_id",),
    "StudySystemAttributeModel": ("study_id", "key", "value_json"),
    "TrialModel": (
        "trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"
    ),
    "TrialParamModel": (
        "param_id", "trial_id", "param_name", "param_value", "distribution_json"
    ),
    "TrialValueModel": ("trial_id", "objective", "value", "value_type"),
    "TrialIntermediateValueModel": (
        "trial_id", "step", "intermediate_value", "intermediate_value_type"
    ),
    "TrialUserAttributeModel": ("trial_user_attribute_id", "trial_id", "key", "value_json"),
    "TrialSystemAttributeModel": ("trial_system_attribute_id", "trial_id", "key", "value_json"),
}  # fmt: skip


def test_all_private_names_are_checked_here() -> None:
    assert private_names(INTERNALS) == {*OWNERS, "optuna.storages._rdb.models"}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("name", OWNERS)
def test_optuna_has_the_private_attribute(name: str, tmp_path: Path) -> None:
    owner = OWNERS[name](tmp_path / "a.log")
    assert hasattr(owner, name), f"Optuna {optuna.__version__}: {owner} has no {name}"


@pytest.mark.parametrize("model", TABLES)
def test_the_tables_have_the_columns_that_statements_name(model: str) -> None:
    table = getattr(storage_internals.rdb_models, model).__table__
    missing = set(TABLES[model]) - set(table.columns.keys())
    assert not missing, f"Optuna {optuna.__version__}: {model} has no {missing}"


def test_the_methods_that_a_database_overrides_exist() -> None:
    overridden = {name for name in vars(Database) if is_private(name)} & set(dir(RDBStorage))
    assert overridden - {"_abc_impl"} == {"_create_new_trial", "_set_trial_param", "_get_trials"}
    for name in ("_create_new_trial", "_get_trials"):
        signature = inspect.signature(getattr(RDBStorage, name))
        ours = inspect.signature(getattr(Database, name))
        assert list(ours.parameters) == list(signature.parameters), f"{name} has changed"


def test_no_other_module_uses_private_names_of_optuna() -> None:
    names = {*OWNERS, "_study_id"}
    internals = {INTERNALS, PACKAGE / "samplers" / "_optuna_internals.py"}
    for file in set(PACKAGE.rglob("*.py")) - internals:
        used = private_names(file)
        private = {name for name in used if name in names or name.startswith("optuna.")}
        assert not private, f"{file.relative_to(PACKAGE)} uses {sorted(private)}"
