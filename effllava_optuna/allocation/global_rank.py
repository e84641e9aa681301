"""Allocation by a global ranking of all units (FLAP, An et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from effllava_optuna.allocation.feasible import feasible_policy
from effllava_optuna.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

    from effllava_optuna.policy import ComponentId, CostModel, ModelStructure


def global_rank(
    structure: ModelStructure,
    widths: Mapping[ComponentId, Sequence[int]],
    scores: Mapping[ComponentId, ArrayLike],
    costs: CostModel,
) -> Policy:
    """Rank all units of the model by their standardised scores, and remove the lowest.

    Scores are standardised to mean 0 and standard deviation 1 within each component. Units below
    a threshold are removed; each component takes the widest allowed width that keeps no more
    units than are left, but at least its narrowest. The threshold is the lowest one that is
    within the limit.

    Args:
        structure: The structure of the model.
        widths: Allowed widths by component, ascending.
        scores: By component, one for each unit in any order; higher is more important.
        costs: What policies cost, and the limit.

    Raises:
        PolicyError: No policy is within the limit.
    """
    standard = {}
    for component in structure.components:
        raw = np.asarray(scores[component.id], dtype=np.float64)
        standard[component.id] = (raw - raw.mean()) / (raw.std() or 1.0)
    thresholds = np.unique(np.concatenate([*standard.values(), [np.inf]]))

    def widths_at(threshold: float) -> list[int]:
        kept = []
        for component in structure.components:
            left = int((standard[component.id] >= threshold).sum())
            allowed = [width for width in widths[component.id] if width <= left]
            kept.append(max(allowed or [widths[component.id][0]]))
        return kept

    low, high = 0, len(thresholds) - 1  # costs fall with the threshold
    while low < high:
        middle = (low + high) // 2
        if costs.allows(Policy.of(structure, widths_at(thresholds[middle]))):
            high = middle
        else:
            low = middle + 1
    policy = Policy.of(structure, widths_at(thresholds[low]))
    return feasible_policy(policy, costs, costs.limit)
