from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from optuna.samplers.nsgaii._elite_population_selection_strategy import _calc_crowding_distance
from optuna.study._multi_objective import _fast_non_domination_rank
from optuna.trial import create_trial

from effllava_optuna.samplers._proposals._selection import (
    Elite,
    FloatArray,
    crowding_distances,
    domination_ranks,
    select,
    tournament,
)

few = settings(max_examples=50, deadline=None)
shapes = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
few_values = arrays(np.float64, shapes, elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, np.inf]))
points = few_values.map(lambda losses: losses[:, :4])
penalty_of_points = st.lists(st.sampled_from([0.0, 0.0, 0.5, 2.0]), min_size=12, max_size=12)


def slow_ranks(losses: list[list[float]], penalties: list[float]) -> list[int]:
    """Remove one front after the other, comparing points one by one."""

    def dominates(i: int, j: int) -> bool:
        if penalties[i] != penalties[j]:
            if penalties[i] == 0 or penalties[j] == 0 or penalties[i] > 0:
                return penalties[i] < penalties[j]
        elif penalties[i] > 0:
            return False
        pairs = list(zip(losses[i], losses[j], strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    ranks = [-1] * len(losses)
    front = 0
    while -1 in ranks:
        unranked = [i for i, rank in enumerate(ranks) if rank == -1]
        for i in [i for i in unranked if not any(dominates(j, i) for j in unranked)]:
            ranks[i] = front
        front += 1
    return ranks


@few
@given(points, penalty_of_points)
def test_ranks_agree_with_a_slow_implementation_and_with_optuna(
    losses: FloatArray, penalties: list[float]
) -> None:
    penalty = np.array(penalties[: len(losses)])
    ranks = domination_ranks(losses, penalty)
    assert ranks.tolist() == slow_ranks(losses.tolist(), penalty.tolist())
    assert ranks.tolist() == _fast_non_domination_rank(losses, penalty=penalty).tolist()


def slow_crowding(losses: list[list[float]]) -> list[float]:
    """Add up the gaps between the two neighbours along each objective."""
    result = [0.0] * len(losses)
    for column in zip(*losses, strict=True):
        if len(set(column)) == 1:
            continue
        order = sorted(range(len(column)), key=lambda i: column[i])
        for position, i in enumerate(order):
            if position in (0, len(order) - 1):
                result[i] = float("inf")
            else:
                gap = column[order[position + 1]] - column[order[position - 1]]
                result[i] += gap / (max(column) - min(column))
    return result


finite_points = arrays(np.float64, shapes, elements=st.integers(-5, 5).map(float))


@few
@given(finite_points)
def test_crowding_agrees_with_a_slow_implementation(losses: FloatArray) -> None:
    np.testing.assert_allclose(crowding_distances(losses), slow_crowding(losses.tolist()))


@few
@given(st.permutations(range(8)), st.permutations(range(8)))
def test_crowding_agrees_with_optuna_without_ties(xs: list[int], ys: list[int]) -> None:
    losses = np.array([xs, ys], dtype=float).T
    population = [create_trial(values=row.tolist()) for row in losses]
    for number, trial in enumerate(population):
        trial.number = number
    expected = _calc_crowding_distance(list(population))
    np.testing.assert_allclose(crowding_distances(losses), [expected[i] for i in range(8)])


def test_infinite_values_do_not_count_for_the_scale() -> None:
    losses = np.array([[0.0], [1.0], [2.0], [np.inf]])
    assert crowding_distances(losses).tolist() == [np.inf, 1.0, np.inf, np.inf]
    assert crowding_distances(np.array([[np.inf], [np.inf]])).tolist() == [0.0, 0.0]


@few
@given(points, penalty_of_points, st.integers(1, 12))
def test_whole_fronts_survive_and_the_best_come_first(
    losses: FloatArray, penalties: list[float], size: int
) -> None:
    penalty = np.array(penalties[: len(losses)])
    elite = select(losses, penalty, size)
    assert len(set(elite.members.tolist())) == min(size, len(losses))
    keys = list(zip(elite.ranks.tolist(), (-elite.crowding).tolist(), strict=True))
    assert keys == sorted(keys)
    left_out = np.setdiff1d(np.arange(len(losses)), elite.members)
    if len(left_out):
        assert domination_ranks(losses, penalty)[left_out].min() >= elite.ranks.max()


def test_tournament_prefers_the_better_half() -> None:
    elite = Elite(np.arange(10), np.arange(10), np.zeros(10))
    rng = np.random.default_rng(0)
    wins = [tournament(elite, rng) for _ in range(2000)]
    # The mean of the smaller of two uniform draws from 0..9 is 2.85.
    assert np.mean(wins) == pytest.approx(2.85, abs=0.2)
