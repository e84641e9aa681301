"""The search space of one epoch: the levels of each gene, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import IntDistribution

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

Genome: TypeAlias = NDArray[np.int64]
"""Shape ``(genes,)``: per gene the index of its level, 0 the narrowest."""


@dataclass(frozen=True, slots=True)
class Seed:
    """A genome that an epoch measures before what the sampler proposes.

    Args:
        params: One value for every gene; measured unchanged, even if it lies between two levels.
        kind: ``"anchor"`` for a reference policy, ``"reeval"`` for an elite of the epoch before
            that is measured again, ``"curve"`` for a point of a sensitivity curve, ``"allocated"``
            for a policy that was computed from such curves.
        origin: Number of the trial that it repeats.
    """

    params: Mapping[str, int]
    kind: str = "anchor"
    origin: int | None = None


class Programme(Protocol):
    """Dynamic programming over weighted sensitivity curves of the genes."""

    @property
    def groups(self) -> Sequence[Sequence[str]]:
        """Return the names of the genes whose curves share a weight, by group."""

    def solve(self, coefficients: Sequence[float], position: float) -> Mapping[str, int]:
        """Return the genome of least weighted sum within a limit, always a feasible one.

        Args:
            coefficients: The logarithm of the weight of each group.
            position: Of the limit: from 0, the largest one, to 1, the narrowest genome.
        """

    def position(self, params: Mapping[str, int]) -> float:
        """Return the position of the limit that the cost of a genome is."""


class SpaceView(Protocol):
    """The space of one epoch; immutable, and the same for every worker."""

    @property
    def epoch(self) -> int:
        """Return the number of the epoch, from 0."""

    @property
    def distributions(self) -> Mapping[str, IntDistribution]:
        """Return the distribution of each gene (step 1), the same for the life of the study."""

    @property
    def levels(self) -> Mapping[str, Sequence[int]]:
        """Return the allowed values of each gene, ascending; the highest is the dense width.

        The order of the names is the order of the genes.
        """

    @property
    def costs(self) -> Mapping[str, Sequence[float]]:
        """Return the cost of each level, non-decreasing; a genome costs the sum over its genes."""

    @property
    def budget(self) -> float | None:
        """Return the largest cost of a feasible genome; None: no limit.

        Sums of costs have rounding errors: include a tolerance.
        """

    @property
    def seeds(self) -> Sequence[Seed]:
        """Return the genomes that the epoch measures first.

        If there are more than fit into a generation, they fill several.
        """

    @property
    def allocation(self) -> Allocation | None:
        """Return what proposes further genomes when the seeds are measured; None: nothing.

        Its genomes follow the generations of the seeds; they fill as many as they need.
        """

    def known_values(self, params: Mapping[str, int]) -> Sequence[float | None]:
        """Return the values of a genome that are known without measuring it.

        Returns:
            One for each objective of the study; None: it has to be measured.
        """

    def is_comparable(self, trial: FrozenTrial) -> bool:
        """Return whether a trial of another epoch has the values that it would have in this one.

        Only values that have to be measured count.
        """

    @property
    def stamp(self) -> Mapping[str, Any]:
        """Return the user attributes of every trial of the epoch."""

    def describe(self, params: Mapping[str, int]) -> Mapping[str, Any]:
        """Return the user attributes of a genome that are known before it is measured."""


@runtime_checkable
class ProgrammeView(Protocol):
    """What a `SpaceView` has in addition for `EpochSpdySampler`."""

    @property
    def programme(self) -> Callable[[Sequence[FrozenTrial]], Programme | None]:
        """Return what computes the programme of the epoch.

        It is called with the trials that an `Allocation` gets, and without trials while the seeds
        are measured. It returns None if these trials are too few for its curves.
        """


@runtime_checkable
class ConditionalCostsView(Protocol):
    """What a `SpaceView` has in addition if the costs of all genes depend on the level of one."""

    @property
    def conditional_costs(self) -> tuple[str, Sequence[Mapping[str, Sequence[float]]]] | None:
        """Return the name of that gene, and `SpaceView.costs` at each of its levels.

        None: costs depend on no other gene.
        """


Allocation: TypeAlias = "Callable[[Sequence[FrozenTrial]], Sequence[Seed]]"
"""Proposes genomes from the COMPLETE trials of the seeds of an epoch, and comparable trials."""

SpaceProvider: TypeAlias = "Callable[[Study], SpaceView]"
"""Returns the space of the current epoch.

It is called often, also while a worker waits, so it should be cheap. If all slots of an epoch are
finished and a callback is about to open the next one, it should return only when that epoch is
published: the sampler reads the trials first and calls the provider afterwards, so that no worker
continues an epoch that has ended. It must not wait for the thread that calls it.
"""


@dataclass(frozen=True, slots=True)
class LevelGrid:
    """A `SpaceView` in arrays: genomes are level indices, and every gene has its own scale.

    Args:
        names: Names of the genes, in order.
        levels: Values of each gene, ascending.
        costs: Cost of each value, by gene.
        top_levels: Shape ``(genes,)``, the index of the dense level of each gene.
        budget: Largest cost of a feasible genome; infinite without a limit.
        level_indices: Index of each value, by gene.
        condition: Index of the gene on whose level all costs depend; None: there is none.
        conditional: ``costs`` at each of its levels; else empty.
    """

    names: tuple[str, ...]
    levels: tuple[NDArray[np.int64], ...]
    costs: tuple[NDArray[np.float64], ...]
    top_levels: Genome
    budget: float
    level_indices: tuple[Mapping[int, int], ...]
    condition: int | None = None
    conditional: tuple[tuple[NDArray[np.float64], ...], ...] = ()

    @classmethod
    def of(cls, view: SpaceView) -> LevelGrid:
        """Check a view and convert it to arrays.

        Raises:
            ValueError: Levels, costs and distributions do not fit together.
        """
        for name in view.levels:
            _check_gene(view, name, view.costs)
        given = view.conditional_costs if isinstance(view, ConditionalCostsView) else None
        condition, at_levels = given or ("", ())
        for costs in at_levels:
            for name in view.levels:
                _check_gene(view, name, costs)
        names = tuple(view.levels)
        return cls(
            names=names,
            levels=tuple(np.asarray(view.levels[name], dtype=np.int64) for name in names),
            costs=_arrays(view.costs, names),
            condition=names.index(condition) if given else None,
            conditional=tuple(_arrays(costs, names) for costs in at_levels),
            top_levels=np.array(
                [len(levels) - 1 for levels in view.levels.values()], dtype=np.int64
            ),
            budget=math.inf if view.budget is None else view.budget,
            level_indices=tuple(
                {int(value): index for index, value in enumerate(levels)}
                for levels in view.levels.values()
            ),
        )

    @property
    def free_genes(self) -> NDArray[np.int64]:
        """Return the indices of the genes that have more than one level."""
        return np.flatnonzero(self.top_levels > 0)

    def params(self, genome: Genome) -> dict[str, int]:
        """Convert a genome to Optuna parameters, in plain Python numbers."""
        rows = zip(self.names, self.levels, genome, strict=True)
        return {name: int(levels[index]) for name, levels, index in rows}

    def genome(self, params: Mapping[str, int]) -> Genome:
        """Convert parameters to the nearest levels; the lower of two that are equally near."""
        values = [params[name] for name in self.names]
        genome = [
            indices[value] if value in indices else int(np.abs(levels - value).argmin())
            for value, indices, levels in zip(values, self.level_indices, self.levels, strict=True)
        ]
        return np.array(genome, dtype=np.int64)

    def cost(self, genome: Genome) -> float:
        """Return the sum of the costs of a genome's levels."""
        costs_by_gene = zip(self.costs_of(genome), genome, strict=True)
        return math.fsum(costs[index] for costs, index in costs_by_gene)

    def costs_of(self, genome: Genome) -> tuple[NDArray[np.float64], ...]:
        """Return the cost of each value by gene, where a genome is."""
        return self.costs if self.condition is None else self.conditional[genome[self.condition]]

    def violation(self, genome: Genome) -> float:
        """Return the cost above the budget: positive only for an infeasible genome."""
        return self.cost(genome) - self.budget

    def constraint(self, genome: Genome) -> float | None:
        """Return the violation of a genome; None if there is no budget."""
        return self.violation(genome) if math.isfinite(self.budget) else None


def _arrays(
    costs: Mapping[str, Sequence[float]], names: Sequence[str]
) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.asarray(costs[name], dtype=np.float64) for name in names)


def _check_gene(view: SpaceView, name: str, all_costs: Mapping[str, Sequence[float]]) -> None:
    levels, costs = view.levels[name], all_costs.get(name, ())
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
