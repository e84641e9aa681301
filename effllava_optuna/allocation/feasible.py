"""The check that all allocation methods share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from effllava_optuna.errors import PolicyError

if TYPE_CHECKING:
    from effllava_optuna.policy import CostModel, Policy


def feasible_policy(policy: Policy, costs: CostModel, limit: float | None) -> Policy:
    """Return a policy that a method found, unless even that one is above the limit.

    Raises:
        PolicyError: It is above the limit, so that no policy is within it.
    """
    if not replace(costs, limit=limit).allows(policy):
        raise PolicyError(
            f"The cheapest policy of these widths costs {costs.cost(policy):.4g}, the limit is "
            f"{limit:.4g}.",
            hint="Allow more, or allow narrower widths.",
        )
    return policy
