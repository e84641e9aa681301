"""Greedy allocation over sensitivity curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.allocation.feasible import feasible_policy

if TYPE_CHECKING:
    from effllava_optuna.allocation.sensitivity import Sensitivity
    from effllava_optuna.policy import CostModel, Policy, Space


def greedy(space: Space, sensitivity: Sensitivity, costs: CostModel) -> Policy:
    """Narrow the gene that loses least for each unit of cost, until the limit is met.

    Args:
        space: The genes.
        sensitivity: By gene and width, the loss when this gene alone is narrowed.
        costs: What policies cost, and the limit.

    Raises:
        PolicyError: No policy is within the limit.
    """
    names = [gene.name for gene in space.genes]
    widths = [sorted(sensitivity[name]) for name in names]
    levels = [len(allowed) - 1 for allowed in widths]
    table = space.gene_costs(costs.costs)

    def current() -> Policy:
        chosen = [allowed[level] for allowed, level in zip(widths, levels, strict=True)]
        return space.policy(chosen)

    while not costs.allows(current()) and any(levels):
        price = {}
        for index, name in enumerate(names):
            for lower in range(levels[index]):  # a curve may have steps that cost nothing
                wide, narrow = widths[index][levels[index]], widths[index][lower]
                saved = table[name][wide] - table[name][narrow]
                loss = sensitivity[name][narrow] - sensitivity[name][wide]
                if saved > 0:
                    price[index, lower] = loss / saved
        if not price:
            break
        index, lower = min(price, key=lambda step: (price[step], -step[1]))
        levels[index] = lower
    return feasible_policy(current(), costs, costs.limit)
