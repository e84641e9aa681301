"""What the search knows about one epoch: which widths each gene may take, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import IntDistribution

if TYPE_CHECKING:
    from optuna.study import Study

Genome: TypeAlias = NDArray[np.int64]
"""Shape ``(genes,)``: per gene the index of its level, 0 the narrowest."""

_SLACK = 1e-9  # rounding of a sum of costs must not make a genome infeasible


@dataclass(frozen=True, slots=True)
class Seed:
    """A genome that generation 0 of an epoch measures before any other.

    Args:
        params: One value for every gene; measured as it is, also where it lies between levels.
        kind: Why it is measured: ``"anchor"`` (a policy worth knowing), ``"reeval"`` (an elite of
            the epoch before, measured again).
        origin: Number of the trial it repeats.
    """

    params: Mapping[str, int]
    kind: str = "anchor"
    origin: int | None = None


class SpaceView(Protocol):
    """The space of one epoch; immutable, and the same for every worker."""

    @property
    def epoch(self) -> int:
        """Count epochs from 0."""

    @property
    def distributions(self) -> Mapping[str, IntDistribution]:
        """Give each gene its distribution (step 1), the same for the life of the study."""

    @property
    def levels(self) -> Mapping[str, Sequence[int]]:
        """Give each gene its allowed values, ascending, the highest of them the dense width.

        The order of the names is the order of the genes.
        """

    @property
    def costs(self) -> Mapping[str, Sequence[float]]:
        """Give each level its share of the cost, non-decreasing; the shares of a genome add up."""

    @property
    def budget(self) -> float | None:
        """Bound the cost of a feasible genome; None where any cost will do."""

    @property
    def seeds(self) -> Sequence[Seed]:
        """Name the genomes that the epoch measures first; at most one population of them."""

    @property
    def stamp(self) -> Mapping[str, Any]:
        """Give the user attributes that every trial of the epoch carries."""

    def describe(self, params: Mapping[str, int]) -> Mapping[str, Any]:
        """Give the user attributes that are known of a genome before it is measured."""


SpaceProvider: TypeAlias = "Callable[[Study], SpaceView]"
"""Tells the space of the current epoch.

It is asked often, also while a worker waits, so it should be cheap. Where all slots of an epoch
are finished and a hook will open the next one, it should return only when that is published: the
sampler looks at the trials first and asks for the space afterwards, so that no worker goes on with
an epoch that is over. It must not wait for work of the thread that called it.
"""


@dataclass(frozen=True, slots=True)
class Grid:
    """A `SpaceView` in arrays: genomes are level indices, and every gene has its own scale.

    Args:
        names: Genes, in order.
        levels: Per gene its values, ascending.
        costs: Per gene the cost of each value.
        tops: Shape ``(genes,)``, the index of the dense level of each gene.
        budget: Bound on the cost; infinite where there is none.
        indices: Per gene the index of each value.
    """

    names: tuple[str, ...]
    levels: tuple[NDArray[np.int64], ...]
    costs: tuple[NDArray[np.float64], ...]
    tops: Genome
    budget: float
    indices: tuple[Mapping[int, int], ...]

    @classmethod
    def of(cls, view: SpaceView) -> Grid:
        """Check a view and take it over.

        Raises:
            ValueError: Levels, costs and distributions do not fit together.
        """
        for name in view.levels:
            _check_gene(view, name)
        return cls(
            names=tuple(view.levels),
            levels=tuple(np.asarray(view.levels[name], dtype=np.int64) for name in view.levels),
            costs=tuple(np.asarray(view.costs[name], dtype=np.float64) for name in view.levels),
            tops=np.array([len(levels) - 1 for levels in view.levels.values()], dtype=np.int64),
            budget=math.inf if view.budget is None else view.budget,
            indices=tuple(
                {int(value): index for index, value in enumerate(levels)}
                for levels in view.levels.values()
            ),
        )

    def params(self, genome: Genome) -> dict[str, int]:
        """Spell a genome as Optuna parameters, in plain Python numbers."""
        rows = zip(self.names, self.levels, genome, strict=True)
        return {name: int(levels[index]) for name, levels, index in rows}

    def genome(self, params: Mapping[str, int]) -> Genome:
        """Snap parameters to the nearest levels, the lower one where two are equally near."""
        values = [params[name] for name in self.names]
        found = [
            known[value] if value in known else int(np.abs(levels - value).argmin())
            for value, known, levels in zip(values, self.indices, self.levels, strict=True)
        ]
        return np.array(found, dtype=np.int64)

    def cost(self, genome: Genome) -> float:
        """Add up the costs of a genome's levels."""
        return math.fsum(costs[index] for costs, index in zip(self.costs, genome, strict=True))

    def violation(self, genome: Genome) -> float:
        """Measure how far a genome is above the budget: positive only where it is infeasible."""
        excess = self.cost(genome) - self.budget
        return excess if excess > _SLACK else min(excess, 0.0)

    def bounded(self, genome: Genome) -> float | None:
        """Give the violation of a genome; None where there is no budget."""
        return self.violation(genome) if math.isfinite(self.budget) else None


def _check_gene(view: SpaceView, name: str) -> None:
    levels, costs = view.levels[name], view.costs.get(name, ())
    distribution = view.distributions.get(name)
    if distribution is None or distribution.step != 1:
        raise ValueError(f"Gene {name!r} needs an IntDistribution of step 1, not {distribution}.")
    if not levels or list(levels) != sorted(set(levels)):
        raise ValueError(f"Gene {name!r} needs ascending levels, not {list(levels)}.")
    if levels[0] < distribution.low or levels[-1] != distribution.high:
        raise ValueError(
            f"Gene {name!r} needs levels from {distribution.low} up that end at "
            f"{distribution.high}, not {list(levels)}."
        )
    if len(costs) != len(levels) or list(costs) != sorted(costs):
        raise ValueError(
            f"Gene {name!r} needs {len(levels)} non-decreasing costs, not {list(costs)}."
        )
