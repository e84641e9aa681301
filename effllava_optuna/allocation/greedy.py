"""Greedy allocation over sensitivity curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.allocation.feasible import feasible_policy
from effllava_optuna.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import ComponentId, CostModel, Costs, ModelStructure


def greedy(
    structure: ModelStructure,
    widths: Mapping[ComponentId, Sequence[int]],
    sensitivity: Costs,
    costs: CostModel,
) -> Policy:
    """Narrow the component that loses least for each unit of cost, until the limit is met.

    Args:
        structure: The structure of the model.
        widths: Allowed widths by component, ascending.
        sensitivity: By component and width, the loss when this component alone is narrowed.
        costs: What policies cost, and the limit.

    Raises:
        PolicyError: No policy is within the limit.
    """
    ids = [component.id for component in structure.components]
    levels = [len(widths[component]) - 1 for component in ids]

    def current() -> list[int]:
        return [widths[component][level] for component, level in zip(ids, levels, strict=True)]

    while not costs.allows(Policy.of(structure, current())) and any(levels):
        price = {}
        for index, component in enumerate(ids):
            for lower in range(levels[index]):  # a curve may have steps that cost nothing
                wide, narrow = widths[component][levels[index]], widths[component][lower]
                saved = costs.costs[component][wide] - costs.costs[component][narrow]
                loss = sensitivity[component][narrow] - sensitivity[component][wide]
                if saved > 0:
                    price[index, lower] = loss / saved
        if not price:
            break
        index, lower = min(price, key=lambda step: (price[step], -step[1]))
        levels[index] = lower
    return feasible_policy(structure, current(), costs)
