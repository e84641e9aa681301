"""What a policy costs: additive costs by component, and the most that may be spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from effllava_optuna.policy.component import ComponentId, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.policy.policy import Policy
    from effllava_optuna.policy.structure import ModelStructure

Costs: TypeAlias = Mapping[ComponentId, Mapping[int, float]]
"""Costs by component and width."""

_TOLERANCE = 1e-9  # the rounding error of a sum must not make a policy infeasible


@dataclass(frozen=True)
class CostModel:
    """Costs that add up over components, and a limit on their sum.

    Attributes:
        costs: By component and width; non-decreasing in the width.
        limit: The largest cost of a feasible policy, in the unit of the costs; None: no limit.
        unit: Unit of the costs, for messages.
        setting: The limit as the study file states it, for messages.
        by_tokens: Costs by the width of the image tokens, if what other components cost depends
            on it; else empty.
    """

    costs: Costs
    limit: float | None
    unit: str = ""
    setting: str = ""
    by_tokens: Mapping[int, Costs] = field(default_factory=dict)

    def at(self, tokens: int) -> CostModel:
        """Return the costs of policies that keep a width of the image tokens."""
        return replace(self, costs=self.by_tokens[tokens], by_tokens={})

    @property
    def tolerated(self) -> float | None:
        """Return the limit plus the tolerance for rounding errors; None: no limit."""
        return None if self.limit is None else self.limit + _TOLERANCE

    def cost(self, policy: Policy) -> float:
        """Return the sum of the costs of all components."""
        return self.sum_of(policy.structure, policy.widths)

    def sum_of(self, structure: ModelStructure, widths: Sequence[int]) -> float:
        """Return the sum of the costs of ``widths``, one for each component of ``structure``."""
        costs = self.costs
        if self.by_tokens and structure.tokens is not None:
            costs = self.by_tokens[widths[structure.tokens]]
        return sum(
            costs[component.id][width]
            for component, width in zip(structure.components, widths, strict=True)
        )

    def excess(self, policy: Policy) -> float:
        """Return by how much a policy is above the limit; positive only if it is infeasible."""
        if self.limit is None:
            return 0.0
        excess = self.cost(policy) - self.limit
        return excess if excess > _TOLERANCE else min(excess, 0.0)

    def allows(self, policy: Policy) -> bool:
        """Return whether a policy is within the limit."""
        return self.excess(policy) <= 0

    def explain_excess(self, policy: Policy) -> str | None:
        """Describe by how much a policy is above the limit; None if it is within."""
        if self.allows(policy):
            return None
        return f"{self.excess(policy):.4f} {self.unit} above the limit ({self.setting})"

    def maximal(self, policies: Sequence[Policy]) -> list[Policy]:
        """Return the feasible policies that are not contained in another feasible one."""
        inside = [policy for policy in policies if self.allows(policy)]
        return [
            policy
            for policy in inside
            if not any(
                other is not policy
                and all(a >= b for a, b in zip(other.widths, policy.widths, strict=True))
                for other in inside
            )
        ]


def parameter_costs(
    structure: ModelStructure, widths: Mapping[ComponentId, Sequence[int]]
) -> Costs:
    """Return the share of the prunable parameters that each component takes at each width."""
    return _without_contents(
        structure,
        {
            component.id: {
                width: component.unit_params * width / structure.parameters
                for width in widths[component.id]
            }
            for component in structure.components
        },
    )


def latency_costs(structure: ModelStructure, saved_ms: Costs) -> Costs:
    """Return the change of latency in ms, at most 0, of each component at each width."""
    return _without_contents(structure, saved_ms)


def _without_contents(structure: ModelStructure, costs: Costs) -> Costs:
    """Subtract from the cost of a removed block what its components cost at their narrowest.

    The components of a removed block cost nothing, but a sum over components cannot know that.
    The result is an upper bound: the sum is never below the true cost.
    """
    adjusted = dict(costs)
    for block in structure.components:
        if block.kind is Kind.BLOCK:
            inside = [
                component
                for component in structure.components
                if (component.tower, component.layer) == (block.tower, block.layer)
                and component is not block
            ]
            narrowest = sum(min(costs[component.id].values()) for component in inside)
            removed = min(costs[block.id][0] - narrowest, costs[block.id][1])
            adjusted[block.id] = {0: removed, 1: costs[block.id][1]}
    return adjusted
