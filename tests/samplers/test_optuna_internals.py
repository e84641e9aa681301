"""Optuna still has the private parts that the samplers use; a failure names what is missing."""

from __future__ import annotations

import importlib
from typing import Any

import optuna
import pytest
from optuna.samplers import GPSampler, NSGAIISampler, RandomSampler
from optuna.storages import InMemoryStorage, RDBStorage

from effllava_optuna.samplers import _optuna_internals
from tests.samplers.private_names import PACKAGE, private_names


def a_study() -> optuna.Study:
    return optuna.create_study(storage=InMemoryStorage(), sampler=RandomSampler())


OWNERS: dict[str, Any] = {
    "_storage": a_study,
    "_study_id": a_study,
    "_trial_id": lambda: a_study().ask(),
    "_backend": lambda: optuna.storages._CachedStorage(RDBStorage("sqlite://")),
    "_set_trial_attr_without_commit": lambda: RDBStorage,
    "_n_qmc_samples_ehvi": lambda: GPSampler(seed=0),
    "_n_preliminary_samples": lambda: GPSampler(seed=0),
}
IMPORTED = {
    "optuna.storages._rdb.models.TrialUserAttributeModel",
    "optuna.storages._rdb.storage._create_scoped_session",
    "optuna.study._frozen.FrozenStudy",
}


def test_all_private_names_are_checked_here() -> None:
    used = private_names(PACKAGE / "samplers" / "_optuna_internals.py")
    assert used == {*OWNERS, *IMPORTED}


@pytest.mark.parametrize("name", OWNERS)
def test_optuna_has_the_private_attribute(name: str) -> None:
    owner = OWNERS[name]()
    assert hasattr(owner, name), f"Optuna {optuna.__version__}: {owner} has no {name}"


@pytest.mark.parametrize("name", sorted(IMPORTED))
def test_optuna_has_the_private_import(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute), f"Optuna has no {name}"


def test_frozen_trials_and_studies_have_ids() -> None:
    study = a_study()
    study.ask()
    (trial,) = study.trials
    (frozen,) = _optuna_internals.storage_of(study).get_all_studies()
    assert hasattr(trial, "_trial_id"), "FrozenTrial has no _trial_id"
    assert hasattr(frozen, "_study_id"), "FrozenStudy has no _study_id"


def test_optuna_uses_the_same_system_attributes() -> None:
    study = a_study()
    study.enqueue_trial({"x": 1})
    trial = study.ask()
    attrs = study.trials[0].system_attrs
    assert attrs[_optuna_internals.FIXED_PARAMS] == {"x": 1}, "enqueue_trial writes another name"
    storage = _optuna_internals.storage_of(study)
    trial_id = _optuna_internals.trial_id_of(trial)
    storage.set_trial_system_attr(trial_id, _optuna_internals.CONSTRAINTS, [0.5])
    assert study.trials[0].constraints == {"0": 0.5}, "constraints are read from another name"
    assert NSGAIISampler._get_generation_key() == _optuna_internals.NSGAII_GENERATION


def test_a_study_in_memory_is_created_without_a_message(capfd: pytest.CaptureFixture[str]) -> None:
    _optuna_internals.create_study_in_memory(2, RandomSampler())
    assert capfd.readouterr().err == ""
