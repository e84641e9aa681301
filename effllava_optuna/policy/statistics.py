"""Intervals for means of scores whose samples form independent groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000


def bootstrap_means(
    scores: ArrayLike, groups: Sequence[object], *, seed: int = 0
) -> NDArray[np.float64]:
    """Resample whole groups, and compute the mean of each row of ``scores`` over each resample.

    All rows use the same resamples, so differences between rows are paired.

    Args:
        scores: Shape ``(rows, samples)``.
        groups: The group of each sample.
        seed: Seed of the resampling.

    Returns:
        Shape ``(rows, RESAMPLES)``.
    """
    values = np.asarray(scores, dtype=np.float64)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(member)
    groups_drawn = np.random.default_rng(seed).integers(len(sizes), size=(RESAMPLES, len(sizes)))
    offsets = len(sizes) * np.arange(RESAMPLES)[:, None]
    counts = np.bincount((groups_drawn + offsets).ravel(), minlength=RESAMPLES * len(sizes))
    times_drawn = counts.reshape(RESAMPLES, len(sizes)).astype(np.float64)
    sums = np.stack([np.bincount(member, weights=row) for row in values])
    return (sums @ times_drawn.T) / (times_drawn @ sizes)


def bootstrap_interval(
    scores: ArrayLike,
    groups: Sequence[object],
    *,
    level: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> tuple[float, float]:
    """Compute a bootstrap interval of the mean by resampling whole groups (Efron 1979).

    The percentile method. Samples of one group (the questions about one picture) are correlated:
    resampling them one by one would make the interval too narrow. If all samples score the same
    (all right, say), resampling would give an interval of width 0; then the interval is the exact
    one of Clopper and Pearson (1934) for as many groups.

    Args:
        scores: Shape ``(samples,)``.
        groups: The group of each sample.
        level: Share of the resampled means inside the interval.
        bounds: Range of a score; (-1, 1) for differences of scores in [0, 1].
        seed: Seed of the resampling.

    Returns:
        The lower and the upper end.

    Example:
        >>> bootstrap_interval([1, 1, 0, 0], ["a", "a", "b", "b"])
        (0.0, 1.0)
        >>> low, high = bootstrap_interval([1] * 36, range(36))
        >>> round(low, 3), high
        (0.903, 1.0)
    """
    values = np.asarray(scores, dtype=np.float64)
    tail = (1 - level) / 2
    if np.ptp(values) == 0:
        score, rate = float(values[0]), 1 - tail ** (1 / len(set(groups)))
        return score - rate * (score - bounds[0]), score + rate * (bounds[1] - score)
    low, high = np.quantile(bootstrap_means(values[None], groups, seed=seed)[0], [tail, 1 - tail])
    return float(low), float(high)
