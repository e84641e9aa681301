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

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.storages import BaseStorage

SAMPLER = optuna.samplers.RandomSampler()
SPACE = {
    "c": CategoricalDistribution(("x", None, 3)),
    "a": IntDistribution(1, 8),
    "b": FloatDistribution(0.1, 1.0, log=True),
}


@pytest.mark.slow
class TestDatabase(StorageTestCase):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> BaseStorage:
        return open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)


def test_all_is_read_as_optuna_reads_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
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
