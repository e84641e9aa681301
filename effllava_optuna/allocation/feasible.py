"""The check that all allocation methods share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.errors import PolicyError
from effllava_optuna.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.policy import CostModel, ModelStructure


def feasible_policy(structure: ModelStructure, widths: Sequence[int], costs: CostModel) -> Policy:
    """Return the policy with these widths.

    Raises:
        PolicyError: It is above the limit, so that no policy is within it.
    """
    policy = Policy.of(structure, widths)
    if not costs.allows(policy):
        raise PolicyError(
            f"The cheapest policy of these widths costs {costs.cost(policy):.4g}, the limit is "
            f"{costs.limit:.4g}.",
            hint="Allow more, or allow narrower widths.",
        )
    return policy
