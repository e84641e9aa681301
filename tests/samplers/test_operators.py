from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effllava_optuna.samplers import Variation
from effllava_optuna.samplers._level_grid import Genome, LevelGrid
from effllava_optuna.samplers._proposals._operators import (
    crossover,
    mutate,
    repair,
    scatter,
    switch,
)
from tests.samplers.toy import ToySpace

few = settings(max_examples=30, deadline=None)


@st.composite
def grids(draw: st.DrawFn) -> LevelGrid:
    widths = st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True).map(sorted)
    genes = draw(st.lists(widths, min_size=1, max_size=6))
    budget = draw(st.none() | st.floats(0, sum(levels[-1] for levels in genes)))
    return LevelGrid.of(
        ToySpace({f"g{i}": levels for i, levels in enumerate(genes)}, budget=budget)
    )


def genome_of(grid: LevelGrid, rng: np.random.Generator) -> Genome:
    return np.asarray(rng.integers(0, grid.top_levels + 1))


Operator = Callable[[Genome, Genome, LevelGrid, np.random.Generator], Genome]

OPERATORS: dict[str, Operator] = {
    "scatter": lambda a, b, grid, rng: scatter(grid.top_levels, rng.random(), 0.35, rng),
    "crossover": lambda a, b, grid, rng: crossover(a, b, grid.top_levels, Variation(), rng),
    "mutate": lambda a, b, grid, rng: mutate(
        a, rng.random(len(a)) < 0.5, grid.top_levels, 20.0, rng
    ),
    "switch": lambda a, b, grid, rng: switch(a, grid, rng),
    "repair": lambda a, b, grid, rng: repair(a, grid, rng),
}


@pytest.mark.parametrize("name", OPERATORS)
@few
@given(grid=grids(), seed=st.integers(0, 2**32))
def test_operators_stay_on_the_levels_and_keep_their_arguments(
    name: str, grid: LevelGrid, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    first, second = genome_of(grid, rng), genome_of(grid, rng)
    before = first.copy(), second.copy()
    child = OPERATORS[name](first, second, grid, rng)
    assert child.dtype == np.int64
    assert ((child >= 0) & (child <= grid.top_levels)).all()
    np.testing.assert_array_equal((first, second), before)


@few
@given(grid=grids(), seed=st.integers(0, 2**32))
def test_repair_meets_the_budget_if_that_is_possible(grid: LevelGrid, seed: int) -> None:
    rng = np.random.default_rng(seed)
    genome = genome_of(grid, rng)
    child = repair(genome, grid, rng)
    assert (child <= genome).all()
    possible = grid.violation(np.zeros_like(grid.top_levels)) <= 0
    assert (grid.violation(child) <= 0) == possible
    if grid.violation(genome) <= 0:
        np.testing.assert_array_equal(child, genome)


@few
@given(grid=grids(), seed=st.integers(0, 2**32))
def test_repair_leaves_fixed_genes_alone(grid: LevelGrid, seed: int) -> None:
    rng = np.random.default_rng(seed)
    genome, fixed = genome_of(grid, rng), rng.random(len(grid.top_levels)) < 0.5
    np.testing.assert_array_equal(repair(genome, grid, rng, fixed)[fixed], genome[fixed])


@few
@given(grid=grids(), seed=st.integers(0, 2**32))
def test_mutation_moves_masked_genes_and_no_others(grid: LevelGrid, seed: int) -> None:
    rng = np.random.default_rng(seed)
    genome, mask = genome_of(grid, rng), rng.random(len(grid.top_levels)) < 0.5
    moved = mutate(genome, mask, grid.top_levels, 20.0, rng) != genome
    np.testing.assert_array_equal(moved, mask & (grid.top_levels > 0))


def test_mutation_steps_both_ways_and_mostly_by_one_level() -> None:
    top_levels, genome = np.full(4000, 10), np.full(4000, 5)
    rng = np.random.default_rng(0)
    steps = mutate(genome, np.ones(4000, dtype=bool), top_levels, 20.0, rng) - genome
    assert abs(steps.mean()) < 0.1
    assert 0.8 < (np.abs(steps) == 1).mean() < 1


def test_crossover_takes_genes_of_both_parents() -> None:
    top_levels = np.full(4000, 10)
    child = crossover(
        np.full(4000, 2),
        np.full(4000, 8),
        top_levels,
        Variation(crossover_prob=1.0),
        np.random.default_rng(0),
    )
    near_first, near_second = np.abs(child - 2) <= 1, np.abs(child - 8) <= 1
    assert (near_first | near_second).mean() > 0.95
    assert near_second.mean() == pytest.approx(0.25, abs=0.03)  # half crossed, half of these swap


def test_crossover_of_equals_changes_nothing() -> None:
    genome = np.arange(8)
    child = crossover(genome, genome, np.full(8, 10), Variation(), np.random.default_rng(0))
    np.testing.assert_array_equal(child, genome)


def test_switch_trades_at_about_equal_cost() -> None:
    grid = LevelGrid.of(ToySpace({"wide": (10, 20, 30), "fine": tuple(range(1, 31))}, budget=60))
    genome, rng = np.array([2, 0]), np.random.default_rng(0)
    for _ in range(20):
        child = switch(genome, grid, rng)
        assert (child != genome).all()
        assert grid.cost(child) == grid.cost(genome)


def test_scatter_reaches_from_small_to_dense() -> None:
    rng, top_levels = np.random.default_rng(0), np.full(32, 8)
    means = [scatter(top_levels, centre, 0.35, rng).mean() / 8 for centre in (0, 0.5, 1)]
    assert means[0] < 0.2
    assert means[1] == pytest.approx(0.5, abs=0.1)
    assert means[2] > 0.8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"switch_prob": 1.5}, "switch_prob must be a probability in [0, 1], not 1.5."),
        ({"mutation_eta": 0}, "mutation_eta must be positive, not 0."),
    ],
)
def test_variation_refuses_impossible_numbers(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Variation(**fields)
