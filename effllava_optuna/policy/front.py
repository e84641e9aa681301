"""The best trade-offs between accuracy and latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def pareto(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Find the Pareto front: maximise the first value, minimise the second.

    Among equal points, the first one is on the front; a point with NaN never is.

    Returns:
        Indices by ascending second value.

    Example:
        >>> pareto([(0.9, 10.0), (0.8, 12.0), (0.7, 5.0)])
        (2, 0)
    """
    front = []
    best = -np.inf
    finite = [index for index, point in enumerate(points) if not np.isnan(point).any()]
    for index in sorted(finite, key=lambda i: (points[i][1], -points[i][0], i)):
        if points[index][0] > best:
            best = points[index][0]
            front.append(index)
    return tuple(front)


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Compute the area that ``points`` dominate (Zitzler and Thiele 1998).

    Args:
        points: Pairs; the first value is maximised, the second minimised.
        reference: Worse than every point that counts, in both values.

    Example:
        >>> hypervolume([(0.9, 10.0)], reference=(0.1, 20.0))
        8.0
    """
    volume, floor = 0.0, reference[0]
    for index in pareto(points):
        gain, cost = points[index]
        if gain > floor and cost < reference[1]:
            volume += (gain - floor) * (reference[1] - cost)
            floor = gain
    return volume


def spread(points: NDArray[np.float64], count: int) -> tuple[int, ...]:
    """Select ``count`` evenly spaced points of a front.

    Both ends are selected; distances are measured after scaling each value to [0, 1].

    Args:
        points: Shape ``(points, 2)``, in the order of the front.
        count: Number of points to select.

    Returns:
        Indices, ascending.
    """
    if len(points) <= count:
        return tuple(range(len(points)))
    extent = np.ptp(points, axis=0)
    scaled = points / np.where(extent > 0, extent, 1.0)
    lengths = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(scaled, axis=0)).sum(1))])
    selected: dict[int, None] = {}
    for target in np.linspace(0.0, lengths[-1], count):
        free = [index for index in range(len(points)) if index not in selected]
        selected[min(free, key=lambda index: abs(lengths[index] - target))] = None
    return tuple(sorted(selected))
