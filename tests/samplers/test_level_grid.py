from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from optuna.distributions import IntDistribution

from effllava_optuna.samplers._level_grid import LevelGrid
from tests.samplers.toy import ToySpace


def test_parameters_snap_to_the_nearest_level() -> None:
    grid = LevelGrid.of(ToySpace({"a": (1, 4, 8), "b": (2, 16)}))
    genome = grid.genome({"a": 6, "b": 100})
    assert genome.tolist() == [1, 1]
    params = grid.params(genome)
    assert params == {"a": 4, "b": 16}
    assert all(type(value) is int for value in params.values())


def test_costs_add_up_and_the_excess_is_the_violation() -> None:
    @dataclass(frozen=True)
    class Tenths(ToySpace):
        @property
        def costs(self) -> dict[str, list[float]]:
            return {name: [0.1, 0.2] for name in self.levels}

    grid = LevelGrid.of(Tenths(dict.fromkeys("abc", (1, 2)), budget=0.6 + 1e-10))
    dense = grid.top_levels
    assert grid.cost(dense) == pytest.approx(0.6)
    assert grid.violation(dense) <= 0
    assert LevelGrid.of(Tenths({"a": (1, 2)}, budget=0.15)).violation(dense[:1]) == pytest.approx(
        0.05
    )
    assert LevelGrid.of(Tenths({"a": (1, 2)})).violation(dense[:1]) == -math.inf


@dataclass(frozen=True)
class Broken(ToySpace):
    cost: tuple[float, ...] = (1.0, 2.0)
    step: int = 1

    @property
    def costs(self) -> Any:
        return {"a": self.cost}

    @property
    def distributions(self) -> dict[str, IntDistribution]:
        return {"a": IntDistribution(2, 8, step=self.step)}


@pytest.mark.parametrize(
    ("levels", "fields", "message"),
    [
        ((4, 2), {}, "Gene 'a' needs ascending levels, not [4, 2]."),
        ((), {}, "Gene 'a' needs ascending levels, not []."),
        ((1, 8), {}, "Gene 'a' needs levels from 2 up that end at 8, not [1, 8]."),
        ((2, 6), {}, "Gene 'a' needs levels from 2 up that end at 8, not [2, 6]."),
        ((4, 8), {"cost": (1.0,)}, "Gene 'a' needs 2 non-decreasing costs, not [1.0]."),
        ((4, 8), {"cost": (2.0, 1.0)}, "Gene 'a' needs 2 non-decreasing costs, not [2.0, 1.0]."),
        ((4, 8), {"step": 2}, "Gene 'a' needs an IntDistribution of step 1"),
    ],
)
def test_levels_and_costs_that_do_not_fit_are_refused(
    levels: tuple[int, ...], fields: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="Gene 'a'") as caught:
        LevelGrid.of(Broken({"a": levels}, **fields))
    assert message in str(caught.value)
