"""The properties of a study that are read incrementally."""

from __future__ import annotations

from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_dashboard._inmemory_cache import _CachedExtraStudyProperty

from effllava_optuna.dashboard.study_properties import IncrementalProperties


def trial(number: int, state: TrialState = TrialState.COMPLETE, risk: object = 0.5) -> FrozenTrial:
    created = create_trial(
        state=state,
        params={"a": 1, "b": 2},
        distributions={"a": IntDistribution(1, 4), "b": IntDistribution(1, 32)},
        user_attrs={"risk": risk},
        value=0.0 if state == TrialState.COMPLETE else None,
    )
    created.number = number
    return created


def test_they_equal_those_that_the_dashboard_computes() -> None:
    trials = [trial(number) for number in range(8)]
    trials[5] = trial(5, TrialState.RUNNING)
    trials[7] = trial(7, risk="unknown")  # not a number: the column is not sortable any more
    original, incremental = _CachedExtraStudyProperty(), IncrementalProperties()
    for polled in (trials[:4], trials[:7], trials, trials):
        original.update(polled)
        incremental.update(polled)
        assert incremental.union_search_space == original.union_search_space
        assert incremental.intersection_search_space == original.intersection_search_space
        assert dict(incremental.union_user_attrs) == dict(original.union_user_attrs)


def test_a_trial_is_read_until_it_has_ended() -> None:
    incremental = IncrementalProperties()
    incremental.update([trial(0, TrialState.RUNNING)])
    incremental.update([trial(0, risk="unknown")])
    incremental.update([trial(0)])
    assert dict(incremental.union_user_attrs) == {"risk": False}
