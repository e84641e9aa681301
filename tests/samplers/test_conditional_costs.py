"""Costs that depend on the level of one gene."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from effllava_optuna.samplers import ConditionalCostsView
from effllava_optuna.samplers._level_grid import LevelGrid
from effllava_optuna.samplers._proposals._operators import repair, switch
from tests.samplers.toy import ToySpace

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVELS = {"tokens": (25, 50, 100), "a": (1, 2, 3), "b": (1, 2, 3)}


@dataclass(frozen=True)
class TokenSpace(ToySpace):
    """A toy space whose costs are multiplied by the tokens that are kept."""

    shares: Sequence[float] = field(default=(0.25, 0.5, 1.0))

    @property
    def conditional_costs(self) -> tuple[str, list[dict[str, list[float]]]]:
        return "tokens", [
            {name: [0.0] * 3 if name == "tokens" else [share * v for v in values]
             for name, values in LEVELS.items()}
            for share in self.shares
        ]  # fmt: skip


def grid_of() -> LevelGrid:
    return LevelGrid.of(TokenSpace({name: list(values) for name, values in LEVELS.items()}))


def test_a_genome_costs_what_it_costs_at_its_tokens() -> None:
    grid = grid_of()
    assert isinstance(TokenSpace({}), ConditionalCostsView)
    assert not isinstance(ToySpace({}), ConditionalCostsView)
    for level, share in enumerate((0.25, 0.5, 1.0)):
        assert grid.cost(np.array([level, 2, 1])) == pytest.approx(share * 5)


def test_a_switch_of_the_tokens_keeps_the_cost_as_near_as_possible() -> None:
    grid, genome = grid_of(), np.array([2, 1, 0])
    seen = set()
    for seed in range(40):
        child = switch(genome, grid, np.random.default_rng(seed))
        seen.add(tuple(child.tolist()))
        assert (child >= 0).all()
        assert (child <= grid.top_levels).all()
        (lowered,), (raised,) = np.flatnonzero(child < genome), np.flatnonzero(child > genome)
        assert child[lowered] == genome[lowered] - 1
        others = [child.copy() for _ in range(genome[raised] + 1, grid.top_levels[raised] + 1)]
        for level, other in enumerate(others, genome[raised] + 1):
            other[raised] = level
        least = min(abs(grid.cost(other) - grid.cost(genome)) for other in others)
        assert abs(grid.cost(child) - grid.cost(genome)) == pytest.approx(least)
    assert any(child[0] == 1 for child in seen)


def test_repair_lowers_genes_until_the_genome_is_within_the_budget() -> None:
    grid = grid_of()
    tight = replace(grid, budget=1.0)
    for seed in range(10):
        child = repair(np.array([2, 2, 2]), tight, np.random.default_rng(seed))
        assert tight.cost(child) <= 1.0
