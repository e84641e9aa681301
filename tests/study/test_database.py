"""Optuna's own tests of a storage, on ours; and that both read the same from one database."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState, create_trial

from effllava_optuna.study.storage import open_storage
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


def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a.db'}"
    return new_database(request.getfixturevalue("postgresql"))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_of(request, tmp_path)


@pytest.mark.slow
class TestDatabase(StorageTestCase):
    @pytest.fixture(params=["sqlite", "postgresql"])
    def storage(self, request: pytest.FixtureRequest, tmp_path: Path) -> BaseStorage:
        return open_storage(url_of(request, tmp_path), create=True)


def test_all_is_read_as_optuna_reads_it(url: str) -> None:
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
                user_attrs={"keep": [1, 2], "nothing": None},
                system_attrs={"constraints": [-1.0]},
                intermediate_values={0: math.nan, 3: -math.inf, 5: 0.5} if values is None else {},
            )
        )
    study.ask().suggest_int("a", 1, 8)
    other = optuna.create_study(storage=ours, study_name="other", sampler=SAMPLER)
    other.ask()
    expected = RDBStorage(url).get_all_trials(study._study_id)
    for fresh in (ours, open_storage(url)):
        found = fresh.get_all_trials(study._study_id)
        assert list(map(repr, found)) == list(map(repr, expected))  # NaN is not equal to itself
        assert [list(trial.params) for trial in found] == [
            list(trial.params) for trial in expected
        ]
        for trial in expected:
            assert repr(fresh.get_trial(trial._trial_id)) == repr(trial)
    with pytest.raises(KeyError):
        ours.get_trial(999)


def test_what_one_process_writes_another_reads(url: str) -> None:
    mine = open_storage(url, create=True)
    study = optuna.create_study(storage=mine, sampler=SAMPLER)
    number = mine.create_new_trial(study._study_id, create_trial(state=TrialState.WAITING))
    other = open_storage(url)
    for storage in (mine, other):
        (waiting,) = storage.get_all_trials(study._study_id)
        assert (waiting.state, waiting.user_attrs) == (TrialState.WAITING, {})
    mine.set_trial_user_attr(number, "a", 1)
    mine.set_trial_param(number, "b", 3.0, IntDistribution(1, 8))
    (waiting,) = mine.get_all_trials(study._study_id)
    assert (waiting.user_attrs, waiting.params) == ({"a": 1}, {"b": 3})
    assert mine.set_trial_state_values(number, TrialState.RUNNING)
    assert not other.set_trial_state_values(number, TrialState.RUNNING)
    (running,) = other.get_all_trials(study._study_id)
    assert (running.user_attrs, running.params) == ({"a": 1}, {"b": 3})
    other.set_trial_user_attr(number, "a", 2)
    assert mine.get_all_trials(study._study_id)[0].user_attrs == {"a": 2}


def test_more_trials_than_a_statement_names_are_read(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    study = optuna.create_study(storage=storage, sampler=SAMPLER)
    template = create_trial(
        state=TrialState.WAITING, params={"a": 3}, distributions={"a": SPACE["a"]}
    )
    for _ in range(1100):
        storage.create_new_trial(study._study_id, template)
    last = study.trials[-1]._trial_id
    storage.set_trial_state_values(last, TrialState.COMPLETE, [1.0])
    for _ in range(2):
        trials = study.get_trials(deepcopy=False)
        assert [trial.number for trial in trials] == list(range(1100))
        assert all(trial.params == {"a": 3} for trial in trials)
