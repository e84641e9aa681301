"""Fronts and hypervolumes, against slow twins and against Optuna's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from effllava_optuna.policy import hypervolume, pareto, spread

# Few different numbers, so that ties, duplicates and points on the reference are common.
POINTS = st.lists(
    st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)), max_size=12
)
REFERENCE = (1.0, 5.0)


def beats(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Tell whether ``first`` has no less, at no more cost, and differs."""
    return first[0] >= second[0] and first[1] <= second[1] and first != second


@given(points=POINTS)
def test_the_front_is_what_no_point_beats_each_once(points: list[tuple[float, float]]) -> None:
    expected = [
        index
        for index, point in enumerate(points)
        if not any(beats(other, point) for other in points) and point not in points[:index]
    ]
    expected.sort(key=lambda index: points[index][1])
    assert pareto(points) == tuple(expected)


def test_a_point_with_nan_is_never_on_the_front() -> None:
    nan = math.nan
    points = [(0.9, 10.0), (nan, 1.0), (0.5, nan), (0.7, 5.0), (nan, nan), (0.95, nan)]
    assert pareto(points) == (3, 0)
    assert hypervolume(points, (0.0, 20.0)) == hypervolume([points[0], points[3]], (0.0, 20.0))


@given(points=POINTS)
def test_the_hypervolume_counts_the_unit_squares_that_are_dominated(
    points: list[tuple[float, float]],
) -> None:
    squares = sum(
        any(gain >= column + 1 and cost <= row for gain, cost in points)
        for column in range(1, 6)
        for row in range(5)
    )
    assert hypervolume(points, REFERENCE) == squares


@given(
    points=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 100)), max_size=12),
    reference=st.tuples(st.floats(0, 1), st.floats(0, 100)),
)
def test_the_hypervolume_equals_optunas(
    points: list[tuple[float, float]], reference: tuple[float, float]
) -> None:
    losses = np.array([(-gain, cost) for gain, cost in points]).reshape(-1, 2)
    worst = np.array([-reference[0], reference[1]])
    inside = losses[(losses <= worst).all(1)]
    expected = compute_hypervolume(inside, worst) if len(inside) else 0.0
    assert hypervolume(points, reference) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(points=POINTS, extra=st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)))
def test_a_further_point_never_takes_hypervolume_away(
    points: list[tuple[float, float]], extra: tuple[float, float]
) -> None:
    assert hypervolume([*points, extra], REFERENCE) >= hypervolume(points, REFERENCE)


@given(points=POINTS, count=st.integers(2, 5))
def test_spread_keeps_both_ends_and_the_number(
    points: list[tuple[float, float]], count: int
) -> None:
    front = np.array([points[index] for index in pareto(points)]).reshape(-1, 2)
    chosen = spread(front, count)
    assert len(chosen) == min(count, len(front))
    assert list(chosen) == sorted(set(chosen))
    if len(front):
        assert (chosen[0], chosen[-1]) == (0, len(front) - 1)


def test_spread_is_even_in_scaled_distance_and_not_in_number() -> None:
    crowded = np.array([[0.0, 0.0], [0.01, 1.0], [0.02, 2.0], [0.03, 3.0], [0.5, 50.0], [1, 100]])
    assert spread(crowded, 3) == (0, 4, 5)
    assert spread(crowded * [1000.0, 0.001], 3) == (0, 4, 5)
