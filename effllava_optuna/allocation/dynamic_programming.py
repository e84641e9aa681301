"""Optimal allocation over additive sensitivity curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from effllava_optuna.allocation.feasible import feasible_policy
from effllava_optuna.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import ComponentId, CostModel, Costs, ModelStructure

_ROUNDING = 1e-9  # of a number of cells


def dynamic_programming(
    structure: ModelStructure,
    widths: Mapping[ComponentId, Sequence[int]],
    sensitivity: Costs,
    costs: CostModel,
    *,
    cells: int = 10_000,
) -> Policy:
    """Minimise the sum of the sensitivities within the limit.

    Solves the multiple-choice knapsack problem (one width for each component) on a grid of costs.

    Args:
        structure: The structure of the model.
        widths: Allowed widths by component, ascending.
        sensitivity: By component and width, the loss when this component alone is narrowed.
        costs: What policies cost, and the limit.
        cells: Cells of the grid, which spans what is left of the limit when all components are at
            their narrowest; costs are rounded up to whole cells.

    Raises:
        PolicyError: No policy is within the limit.
    """
    dense = Policy.dense(structure)
    if costs.limit is None or costs.allows(dense):
        return dense
    narrowest = [widths[component.id][0] for component in structure.components]
    left = costs.limit - costs.cost(feasible_policy(structure, narrowest, costs))
    best = np.zeros(cells + 1)  # smallest loss by the number of cells that may be spent
    choices = []
    for component in structure.components:
        table, allowed = costs.costs[component.id], widths[component.id]
        losses = np.full((len(allowed), cells + 1), np.inf)
        for level, width in enumerate(allowed):
            spent = _cells(table[width] - table[allowed[0]], left, cells) if level else 0
            if spent <= cells:
                losses[level, spent:] = (
                    sensitivity[component.id][width] + best[: cells + 1 - spent]
                )
        choices.append(losses.argmin(0))
        best = losses.min(0)
    remaining, kept = cells, []
    for component, levels in zip(reversed(structure.components), reversed(choices), strict=True):
        table, allowed = costs.costs[component.id], widths[component.id]
        level = int(levels[remaining])
        kept.append(allowed[level])
        if level:
            remaining -= _cells(table[allowed[level]] - table[allowed[0]], left, cells)
    return feasible_policy(structure, kept[::-1], costs)


def _cells(cost: float, left: float, cells: int) -> int:
    """Return the number of cells that ``cost`` takes; more than all if it is too much."""
    share = cost / left if left > 0 else np.inf
    return int(np.ceil(min(share, 2.0) * cells - _ROUNDING))
