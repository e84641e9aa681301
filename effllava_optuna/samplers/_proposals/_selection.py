"""Survival and mating of NSGA-II: constrained non-dominated sorting and crowding distance.

Deb et al. 2002, "A fast and elitist multiobjective genetic algorithm: NSGA-II",
https://doi.org/10.1109/4235.996017, sections III and VI. All functions are deterministic: the
first of several equal points wins, and the callers sort points by slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Elite:
    """The survivors of a selection, best first.

    Args:
        members: Shape ``(survivors,)``, indices into the points that were selected from.
        ranks: Shape ``(survivors,)``, 0 for the first front; non-decreasing.
        crowding: Shape ``(survivors,)``, distance to the neighbours in the same front; a larger
            one is better; infinite at the ends.
    """

    members: IntArray
    ranks: IntArray
    crowding: FloatArray


def domination_ranks(losses: FloatArray, penalties: FloatArray) -> IntArray:
    """Sort points into fronts.

    Args:
        losses: Shape ``(points, objectives)``; smaller is better; no NaN.
        penalties: Shape ``(points,)``; zero for feasible points. Any feasible point dominates any
            infeasible one; among infeasible points the smaller penalty dominates.

    Returns:
        Shape ``(points,)``, the front of each point, counted from 0.
    """
    infeasible = penalties > 0
    ranks = np.empty(len(losses), dtype=np.int64)
    ranks[~infeasible] = _fronts(losses[~infeasible])
    last_feasible = ranks[~infeasible].max(initial=-1)
    penalty_ranks = np.unique(penalties[infeasible], return_inverse=True)[1]
    ranks[infeasible] = penalty_ranks + last_feasible + 1
    return ranks


def _fronts(losses: FloatArray) -> IntArray:
    """Return the front of each feasible point, removing one front after the other."""
    points, point_indices = np.unique(losses, axis=0, return_inverse=True)
    ranks = np.empty(len(points), dtype=np.int64)
    remaining, front = np.arange(len(points)), 0
    while len(remaining):
        in_front = _undominated(points[remaining])
        ranks[remaining[in_front]] = front
        remaining, front = remaining[~in_front], front + 1
    return ranks[point_indices.reshape(-1)]


def _undominated(points: FloatArray) -> NDArray[np.bool_]:
    """Mark the undominated ones of distinct points that are sorted by all columns."""
    if points.shape[1] > 2:
        no_worse = np.asarray((points[:, None, :] <= points[None, :, :]).all(axis=2))
        np.fill_diagonal(no_worse, val=False)
        return np.asarray(~no_worse.any(axis=0))
    # All earlier points are no worse in the first column, so only the last column decides.
    last = points[:, -1]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(last)[:-1]])
    undominated = np.asarray(last < best_before)
    undominated[0] = True
    return undominated


def crowding_distances(losses: FloatArray) -> FloatArray:
    """Compute how far apart the neighbours of each point of one front are.

    Args:
        losses: Shape ``(points, objectives)``; no NaN. Infinite values lie at the ends and do not
            count for the scale.

    Returns:
        Shape ``(points,)``; the sum over objectives of the gap between both neighbours, relative
        to the range of that objective; infinite for the two ends of each objective. An objective
        that is equal for all points adds nothing.
    """
    distances = np.zeros(len(losses))
    for column in losses.T:
        if column.min() == column.max():
            continue
        order = np.argsort(column, kind="stable")
        padded = np.concatenate([[-np.inf], column[order], [np.inf]])
        low, high = padded[:-2], padded[2:]
        finite = column[np.isfinite(column)]
        width = float(np.ptp(finite)) if len(finite) else 0.0
        gaps = np.subtract(high, low, out=np.zeros(len(column)), where=high != low)
        distances[order] += gaps / (width or 1.0)
    return distances


def select(losses: FloatArray, penalties: FloatArray, size: int) -> Elite:
    """Select the best points: whole fronts first, then the least crowded of the last front.

    Args:
        losses: Shape ``(points, objectives)``; smaller is better.
        penalties: Shape ``(points,)``; positive for infeasible points.
        size: Largest number of survivors.
    """
    ranks = domination_ranks(losses, penalties)
    crowding = np.zeros(len(losses))
    for front in np.unique(ranks):
        members = ranks == front
        crowding[members] = crowding_distances(losses[members])
    best = np.lexsort((np.arange(len(losses)), -crowding, ranks))[:size]
    return Elite(best, ranks[best], crowding[best])


def tournament(elite: Elite, rng: np.random.Generator) -> int:
    """Draw two survivors and return the position of the better one."""
    first, second = rng.integers(len(elite.members), size=2)
    # Survivors are sorted by rank and crowding, so the earlier position wins the tournament.
    return int(min(first, second))
