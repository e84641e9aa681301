"""Which policies of a front become finalists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.policy import (
    Component,
    Kind,
    ModelStructure,
    TrialRecord,
    best_and_spread,
    front_of,
    meets_budget,
    select_finalists,
)
from tests.policy.test_record import TRIAL, TRIALS

STRUCTURE = ModelStructure(
    (Component("language", 0, Kind.ATTN, 4, 100), Component("language", 0, Kind.MLP, 32, 10))
)
SAMPLES = 40
GROUPS = list(range(SAMPLES))


def trial(number: int, quality: float, latency_ms: float, widths: tuple[int, int]) -> TrialRecord:
    """Return a trial whose scores differ by sample, and from those of other widths."""
    rng = np.random.default_rng(widths)
    noise = rng.normal(0, 0.2, SAMPLES)
    scores = tuple(float(score) for score in quality + noise - noise.mean())
    return replace(
        TRIAL,
        number=number,
        quality=quality,
        latency_ms=latency_ms,
        widths=widths,
        quality_scores=scores,
    )


# The three best trials are almost the same policy; 4 and 5 differ; 6 and 7 are much worse.
FRONT = [
    trial(1, 0.900, 20.0, (4, 16)),
    trial(2, 0.899, 19.9, (4, 15)),
    trial(3, 0.898, 19.8, (4, 14)),
    trial(4, 0.890, 19.0, (1, 32)),
    trial(5, 0.885, 18.0, (2, 4)),
    trial(6, 0.500, 12.0, (1, 2)),
    trial(7, 0.300, 10.0, (1, 1)),
]


def numbers(trials: list[TrialRecord]) -> list[int]:
    return [trial.number for trial in trials]


def selected(count: int, *, has_budget: bool = True) -> list[int]:
    return numbers(select_finalists(FRONT, count, STRUCTURE, GROUPS, has_budget=has_budget))


def test_with_a_budget_finalists_differ_and_are_as_good_as_the_best() -> None:
    assert selected(1) == [1]
    assert selected(2) == [1, 4]
    assert selected(3) == [1, 4, 5]


def test_near_duplicates_come_before_policies_that_are_worse_than_noise() -> None:
    assert selected(5) == [1, 2, 3, 4, 5]
    assert selected(6) == [1, 2, 3, 4, 5, 6]
    assert selected(9) == [1, 2, 3, 4, 5, 6, 7]


def test_if_the_proxy_ranks_all_policies_the_others_lie_along_the_front() -> None:
    """Scores without noise: no policy is as good as the best one."""
    certain = [replace(each, quality_scores=(each.quality,) * SAMPLES) for each in FRONT]
    chosen = numbers(select_finalists(certain, 3, STRUCTURE, GROUPS, has_budget=True))
    assert chosen == [1, 2, 7]


def test_without_a_budget_finalists_lie_along_the_whole_front() -> None:
    assert selected(1, has_budget=False) == [1]
    assert selected(2, has_budget=False) == [1, 7]
    assert selected(3, has_budget=False) == [1, 6, 7]
    assert selected(4, has_budget=False) == [1, 5, 6, 7]


def test_a_policy_under_another_weight_state_is_no_other_policy() -> None:
    again = replace(FRONT[0], number=9, quality=0.8995, latency_ms=19.95, weight_state="c")
    front = [FRONT[0], again, *FRONT[1:]]
    chosen = numbers(select_finalists(front, 3, STRUCTURE, GROUPS, has_budget=True))
    assert chosen == [1, 4, 5]


@pytest.mark.parametrize("count", range(1, 8))
def test_a_front_without_stored_scores_has_the_finalists_of_older_versions(count: int) -> None:
    older = [replace(each, quality_scores=()) for each in FRONT]
    chosen = select_finalists(older, count, STRUCTURE, GROUPS, has_budget=True)
    assert set(numbers(chosen)) == set(numbers(best_and_spread(older, count)))


@given(trials=TRIALS, count=st.integers(1, 6))
def test_half_is_the_best_and_the_rest_is_spread(trials: list[TrialRecord], count: int) -> None:
    front = front_of(trials)
    chosen = best_and_spread(front, count)
    assert len(chosen) == min(count, len(front))
    assert len({trial.number for trial in chosen}) == len(chosen)
    assert chosen[: (count + 1) // 2] == front[: (count + 1) // 2]


@given(
    trials=TRIALS,
    count=st.integers(1, 6),
    has_budget=st.booleans(),
    seed=st.integers(0, 3),
)
def test_the_best_policy_is_a_finalist_and_the_front_is_used_up(
    trials: list[TrialRecord], count: int, has_budget: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    front = [
        replace(
            each,
            widths=(int(rng.integers(1, 5)), int(rng.integers(1, 33))),
            quality_scores=tuple(float(score) for score in each.quality + rng.normal(size=8)),
        )
        for each in front_of(trials)
    ]
    groups = [0, 0, 1, 1, 2, 2, 3, 3]
    chosen = select_finalists(front, count, STRUCTURE, groups, has_budget=has_budget)
    assert len({each.number for each in chosen}) == len(chosen) == min(count, len(front))
    assert chosen[:1] == front[:1]
    assert chosen == select_finalists(front, count, STRUCTURE, groups, has_budget=has_budget)
    assert [front.index(each) for each in chosen] == sorted(front.index(each) for each in chosen)


@pytest.mark.parametrize(
    ("latency_ms", "speedup", "meets"),
    [(60.04, 1.496, True), (60.06, 1.6, False), (50.0, 1.494, False), (50.0, 1.6, True)],
)
def test_a_budget_is_met_by_what_the_tables_show(
    latency_ms: float, speedup: float, meets: bool
) -> None:
    assert meets_budget({"latency_ms": 60.0, "speedup": 1.5}, latency_ms, speedup) is meets
    assert meets_budget({"latency_ms": None, "speedup": None}, latency_ms, speedup)
