"""Dynamic programming over sensitivity curves that are multiplied by weights."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from effllava_optuna.allocation.dynamic_programming import allocation_front, cost_range

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.allocation.sensitivity import Sensitivity
    from effllava_optuna.policy import CostModel, Space

_GROUPS = 12  # about the most: a search for weights should have few dimensions


@dataclass(frozen=True)
class WeightedProgramme:
    """A programme whose solutions depend on weights of the curves and on the limit.

    The form of SPDY (Frantar & Alistarh 2022, "SPDY: Accurate Pruning with Speedup Guarantees",
    arXiv:2201.13096), where each layer has a weight. With equal weights it is plain dynamic
    programming. Every solution is within the limit.

    Attributes:
        space: The genes.
        sensitivity: Their curves, as in `allocation_front`.
        costs: What policies cost.
        groups: Names of the genes that share a weight.
        largest: The largest limit.
        narrowest: The cost of the narrowest policy, the smallest limit.
        fewer: Their curves with fewer image tokens, as in `allocation_front`.
    """

    space: Space
    sensitivity: Sensitivity
    costs: CostModel
    groups: tuple[tuple[str, ...], ...]
    largest: float
    narrowest: float
    fewer: Mapping[int, Sensitivity] = field(default_factory=dict)

    @staticmethod
    def of(
        space: Space,
        sensitivity: Sensitivity,
        costs: CostModel,
        fewer: Mapping[int, Sensitivity] | None = None,
    ) -> WeightedProgramme | None:
        """Create the programme of some curves, up to the limit of ``costs``.

        Returns:
            None if no curve has a second width, or no policy is within the limit.
        """
        groups = _neighbours(space, sensitivity)
        extent = cost_range(space, sensitivity, costs)
        if not groups or extent is None:
            return None
        return WeightedProgramme(space, sensitivity, costs, groups, *extent, fewer or {})

    def solve(self, coefficients: Sequence[float], position: float) -> dict[str, int]:
        """Minimise the weighted sum of the sensitivities within a limit.

        Args:
            coefficients: The logarithm of the weight of each group.
            position: Of the limit: 0 for the largest, 1 for the smallest. As in
                `allocation_range`, limits are denser near the largest one.

        Returns:
            The width of each gene.
        """
        weights = {
            name: math.exp(coefficient)
            for names, coefficient in zip(self.groups, coefficients, strict=True)
            for name in names
        }

        def weighted(curves: Sensitivity) -> Sensitivity:
            return {
                name: {width: weights.get(name, 1.0) * loss for width, loss in curve.items()}
                for name, curve in curves.items()
            }

        limit = self.largest - (self.largest - self.narrowest) * position**2
        # The largest limit sets the grid of costs: it is the same for every position.
        limits = [self.largest, limit]
        policies = allocation_front(
            self.space,
            weighted(self.sensitivity),
            self.costs,
            limits,
            fewer={tokens: weighted(curves) for tokens, curves in self.fewer.items()},
        )
        return self.space.encode(policies[1])

    def position(self, params: Mapping[str, int]) -> float:
        """Return the position of the limit that the cost of a policy is."""
        extent = self.largest - self.narrowest
        saved = self.largest - self.costs.cost(self.space.decode(params).policy)
        return math.sqrt(min(max(saved / extent, 0.0), 1.0)) if extent else 0.0


def _neighbours(space: Space, sensitivity: Sensitivity) -> tuple[tuple[str, ...], ...]:
    """Group the genes whose curves have several widths: neighbours in depth, of one kind."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for gene in space.genes:
        if len(sensitivity[gene.name]) > 1:
            component = space.structure.components[gene.components[0]]
            kinds.setdefault((component.tower, component.kind), []).append(gene.name)
    count = sum(map(len, kinds.values()))
    groups: list[tuple[str, ...]] = []
    for names in kinds.values():
        parts = min(len(names), max(1, round(_GROUPS * len(names) / count)))
        bounds = np.linspace(0, len(names), parts + 1).round().astype(int).tolist()
        groups += [tuple(names[start:end]) for start, end in itertools.pairwise(bounds)]
    return tuple(groups)
