"""The verdict of a rung errs no more often than stated: by enumeration, and by simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.policy import dealt, evidence, missed

COST = st.floats(0, 4)
COSTS = st.lists(COST, min_size=2, max_size=12)


@pytest.mark.parametrize("asked", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "costs", [[0.1, 0.5, 0.9, 1.0, 0.3, 0.7], [3.0, 2.0, 1.0, 0.5, 0.4, 0.3], [0.6] * 6]
)
def test_a_bet_against_a_policy_that_is_as_good_as_its_rival_is_fair(
    costs: list[float], asked: int
) -> None:
    """Over all orders of its units, the capital is what was staked: 1 on average."""
    capitals = [
        evidence(order[:asked], sum(costs), len(costs)) for order in itertools.permutations(costs)
    ]
    assert np.mean(capitals) == pytest.approx(1.0, abs=1e-4)


def beta(a: float, b: float) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: 2 * rng.beta(a, b, 32)


def rare(rng: np.random.Generator) -> np.ndarray:
    """A few units cost nothing, and make up for all others: a Student's t would not see them."""
    return np.where(np.arange(32) < 4, 0.0, 0.5 + 0.02 * rng.random(32))


def few(rng: np.random.Generator) -> np.ndarray:
    """All that is lost is lost in two units."""
    return np.where(np.arange(32) < 2, 2.0, 0.0)


@pytest.mark.parametrize("confidence", [0.9, 0.99])
@pytest.mark.parametrize("population", [beta(1, 4), beta(0.2, 0.2), beta(5, 1), rare, few])
def test_the_simulated_error_rate_is_no_more_than_stated(
    population: Callable[[np.random.Generator], np.ndarray], confidence: float
) -> None:
    """Policies exactly as good as their rival, looked at after 8, 16, 24 and 32 of 32 units."""
    rng, runs = np.random.default_rng(0), 500
    wrong = 0
    for _ in range(runs):
        costs = rng.permutation(population(rng))
        looks = [evidence(costs[:asked], costs.sum(), 32) for asked in (8, 16, 24, 32)]
        wrong += max(looks) >= 1 / (1 - confidence)
    # Three standard errors of a rate that is exactly what is stated.
    assert wrong / runs <= 1 - confidence + 3 * math.sqrt(confidence * (1 - confidence) / runs)


def test_a_hopeless_policy_is_found_out() -> None:
    """It misses a half where a tenth is allowed: after half of the units that is plain."""
    rng = np.random.default_rng(1)
    found = [evidence(rng.random(16) * 2, 0.2 * 32, 32) for _ in range(200)]
    assert np.mean(np.array(found) >= 100) > 0.95


@given(COSTS, st.integers(0, 12), st.floats(0, 5))
def test_what_is_certain_is_never_wrong(costs: list[float], asked: int, spare: float) -> None:
    assert evidence(costs[:asked], sum(costs) + spare, len(costs)) < math.inf


@given(COSTS, st.floats(0, 1))
def test_what_full_marks_cannot_save_is_certain(costs: list[float], share: float) -> None:
    allowance = share * sum(costs) - 0.01
    assert evidence(costs, allowance, len(costs) + 3) == math.inf


@given(COSTS, st.floats(0.5, 40), st.floats(0, 10))
def test_who_is_allowed_more_is_suspected_no_more(
    costs: list[float], allowance: float, more: float
) -> None:
    """So a better rival, or more risk, never weakens a verdict."""
    least = evidence(costs, allowance + more, len(costs) + 4)
    assert least <= evidence(costs, allowance, len(costs) + 4) * (1 + 1e-9)


@given(COSTS, st.integers(0, 11), COST, st.floats(0.5, 40))
def test_who_misses_more_is_suspected_no_less(
    costs: list[float], place: int, more: float, allowance: float
) -> None:
    worse = [cost + more * (place == at) for at, cost in enumerate(costs)]
    units = len(costs) + 4
    least = evidence(costs, allowance, units)
    assert least <= evidence(worse, allowance, units) * (1 + 1e-9)


def test_what_is_missed_adds_up_by_unit() -> None:
    assert missed([1.0, 0.25, 0.5], ["a", "b", "a"]) == {"a": 0.5, "b": 0.75}


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1), st.sets(st.integers(1, 40), max_size=4))
def test_rungs_deal_every_unit_once_and_end_at_the_first_unit_beyond_their_size(
    units: list[str], sizes: set[int]
) -> None:
    rungs = dealt(units, sorted(sizes), np.random.default_rng(0))
    order = list(itertools.chain(*rungs))
    assert sorted(order) == sorted(set(units))
    ends = np.cumsum([sum(units.count(unit) for unit in rung) for rung in rungs])
    for end, rung in zip(ends[:-1], rungs[:-1], strict=True):
        last = units.count(rung[-1])
        assert any(end - last < size <= end for size in sizes)
    assert all(any(size <= end for end in ends) for size in sizes if size <= len(units))


def test_the_order_is_the_draws_and_nothing_elses() -> None:
    units = [f"u{number // 2}" for number in range(64)]
    assert dealt(units, [16, 32], np.random.default_rng(3)) == dealt(
        units, [16, 32], np.random.default_rng(3)
    )
    whole = dealt(units, [], np.random.default_rng(3))
    assert len(whole) == 1
    rungs = dealt(units, [16, 32], np.random.default_rng(3))
    assert [len(rung) for rung in rungs] == [8, 8, 16]
    assert list(itertools.chain(*rungs)) == list(whole[0])
    firsts = [
        unit for seed in range(400) for unit in dealt(units, [16], np.random.default_rng(seed))[0]
    ]
    counts = [firsts.count(unit) for unit in dict.fromkeys(units)]
    assert min(counts) > 60  # of 100 expected, standard deviation 8.7
