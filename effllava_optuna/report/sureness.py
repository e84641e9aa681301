"""How sure a difference between two reported policies is, from what each scored on each sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from effllava_optuna.policy import bootstrap_interval, bootstrap_means

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RIVALS = {"dense": "the dense model", "uniform2": "the best two-number policy"}


def comparisons(
    chosen: Mapping[str, Any], scores: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Compare the chosen policy with the dense model and the best two-number policy.

    Args:
        chosen: Its entry of the document.
        scores: What was stored at the end of the study, by split; None: by an earlier version,
            which stored nothing.

    Returns:
        For each rival, on validation and on test: the ``difference`` of accuracies, its paired
        95 % ``interval``, and in which share of the resamples the choice is ``ahead``.
    """
    if scores is None:
        return []
    mine = str(chosen["trial"])
    return [
        {"rival": rival, "split": split, **difference(scores[split], mine, rival)}
        for split in ("validation", "test")
        for rival in RIVALS
        if rival in scores[split]["hits"]
    ]


def difference(answered: Mapping[str, Any], one: str, other: str) -> dict[str, Any]:
    """Give by how much ``one`` is more accurate than ``other`` on the same samples."""
    units: Sequence[int] = answered["units"]
    gained = np.subtract(answered["hits"][one], answered["hits"][other])
    low, high = bootstrap_interval(gained, units, bounds=(-1.0, 1.0))
    ahead = float((bootstrap_means(gained[None], units) > 0).mean())
    return {
        "difference": round(float(gained.mean()), 6),
        "interval": [round(low, 6), round(high, 6)],
        "ahead": round(ahead, 4),
    }


def verdict(found: Mapping[str, Any]) -> str:
    """Say what a comparison means: ahead, behind, or not told apart."""
    low, high = found["interval"]
    if low > 0:
        return "is ahead of"
    if high < 0:
        return "is behind"
    return "cannot be told from"
