"""Optuna's tests of a storage, on ours; and that both read the same from one database."""

from __future__ import annotations

import copy
import math
import shutil
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import FrozenTrial, TrialState, create_trial

from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.storage_internals import study_id_of, trial_id_of
from tests.conftest import new_database

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.storages import BaseStorage

SAMPLER = optuna.samplers.RandomSampler()
SPACE = {
    "c": CategoricalDistribution(("x", None, 3)),
    "a": IntDistribution(1, 8),
    "b": FloatDistribution(0.1, 1.0, log=True),
}


DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.servers)]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database without studies; to copy it is faster than to create one."""
    file = tmp_path_factory.mktemp("empty") / "empty.db"
    RDBStorage(f"sqlite:///{file}").engine.dispose()
    return file


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, empty_database: Path, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'a.db')}"
    return new_database(request.getfixturevalue("postgresql"))


class TestDatabase(StorageTestCase):
    @pytest.fixture
    def storage(self, url: str) -> BaseStorage:
        return open_storage(url, create=True)


def text_of(trial: FrozenTrial) -> str:
    """Return a comparable text: NaN is not equal to itself, and SQL has no order of attributes."""
    trial = copy.copy(trial)
    trial.user_attrs = dict(sorted(trial.user_attrs.items()))
    return repr(trial)


def test_trials_are_read_as_optuna_reads_them(url: str) -> None:
    ours = open_storage(url, create=True)
    study = optuna.create_study(
        storage=ours, study_name="s", directions=["maximize", "minimize"], sampler=SAMPLER
    )
    params = {"c": None, "a": 3, "b": 0.25}
    for state, values in (
        (TrialState.COMPLETE, [1.0, math.inf]),
        (TrialState.COMPLETE, [-math.inf, 2.5]),
        (TrialState.FAIL, None),
        (TrialState.WAITING, None),
    ):
        study.add_trial(
            create_trial(
                state=state,
                values=values,
                params=params,
                distributions=SPACE,
                user_attrs={"widths": [1, 2], "nothing": None},
                system_attrs={"constraints": [-1.0]},
                intermediate_values={0: math.nan, 3: -math.inf, 5: 0.5} if values is None else {},
            )
        )
    study.ask().suggest_int("a", 1, 8)
    other = optuna.create_study(storage=ours, study_name="other", sampler=SAMPLER)
    other.ask()
    expected = RDBStorage(url).get_all_trials(study_id_of(study))
    for storage in (ours, open_storage(url)):
        trials = storage.get_all_trials(study_id_of(study))
        assert list(map(text_of, trials)) == list(map(text_of, expected))
        assert [list(trial.params) for trial in trials] == [
            list(trial.params) for trial in expected
        ]
        for trial in expected:
            assert text_of(storage.get_trial(trial_id_of(trial))) == text_of(trial)
    with pytest.raises(KeyError):
        ours.get_trial(999)


def test_a_storage_reads_what_another_one_writes(url: str) -> None:
    first = open_storage(url, create=True)
    study = optuna.create_study(storage=first, sampler=SAMPLER)
    trial_id = first.create_new_trial(study_id_of(study), create_trial(state=TrialState.WAITING))
    second = open_storage(url)
    for storage in (first, second):
        (waiting,) = storage.get_all_trials(study_id_of(study))
        assert (waiting.state, waiting.user_attrs) == (TrialState.WAITING, {})
    first.set_trial_user_attr(trial_id, "a", 1)
    first.set_trial_param(trial_id, "b", 3.0, IntDistribution(1, 8))
    (waiting,) = first.get_all_trials(study_id_of(study))
    assert (waiting.user_attrs, waiting.params) == ({"a": 1}, {"b": 3})
    assert first.set_trial_state_values(trial_id, TrialState.RUNNING)
    assert not second.set_trial_state_values(trial_id, TrialState.RUNNING)
    (running,) = second.get_all_trials(study_id_of(study))
    assert (running.user_attrs, running.params) == ({"a": 1}, {"b": 3})
    second.set_trial_user_attr(trial_id, "a", 2)
    assert first.get_all_trials(study_id_of(study))[0].user_attrs == {"a": 2}


def test_more_trials_are_read_than_one_statement_selects(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    study = optuna.create_study(storage=storage, sampler=SAMPLER)
    template = create_trial(
        state=TrialState.WAITING, params={"a": 3}, distributions={"a": SPACE["a"]}
    )
    for _ in range(1100):
        storage.create_new_trial(study_id_of(study), template)
    last = trial_id_of(study.trials[-1])
    storage.set_trial_state_values(last, TrialState.COMPLETE, [1.0])
    for _ in range(2):
        trials = study.get_trials(deepcopy=False)
        assert [trial.number for trial in trials] == list(range(1100))
        assert all(trial.params == {"a": 3} for trial in trials)
