"""The best trade-offs between accuracy and latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def pareto(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Find the points that no other beats: more of the first, less of the second.

    Of equal points the first one counts; a point with NaN never does. Indices come back by
    ascending second value.

    Example:
        >>> pareto([(0.9, 10.0), (0.8, 12.0), (0.7, 5.0)])
        (2, 0)
    """
    found = []
    best = -np.inf
    known = [index for index, point in enumerate(points) if not np.isnan(point).any()]
    for index in sorted(known, key=lambda i: (points[i][1], -points[i][0], i)):
        if points[index][0] > best:
            best = points[index][0]
            found.append(index)
    return tuple(found)


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Measure the area that ``points`` dominate (Zitzler and Thiele 1998).

    Args:
        points: (more is better, less is better).
        reference: Worse than every point that shall count, in both.

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
    """Choose ``count`` of a front's points (shape ``(points, 2)``, in order) evenly spaced.

    Both ends are chosen; distances are taken after scaling each value to [0, 1].
    """
    if len(points) <= count:
        return tuple(range(len(points)))
    extent = np.ptp(points, axis=0)
    scaled = points / np.where(extent > 0, extent, 1.0)
    walked = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(scaled, axis=0)).sum(1))])
    chosen: dict[int, None] = {}
    for target in np.linspace(0.0, walked[-1], count):
        free = [index for index in range(len(points)) if index not in chosen]
        chosen[min(free, key=lambda index: abs(walked[index] - target))] = None
    return tuple(sorted(chosen))
