"""How sure a mean of scores is, when samples come in independent groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000


def bootstrap_means(
    scores: ArrayLike, units: Sequence[object], *, seed: int = 0
) -> NDArray[np.float64]:
    """Resample whole units, and give the mean of each row of ``scores`` over each resample.

    All rows are averaged over the same resamples: differences between them are paired.

    Args:
        scores: Shape ``(rows, samples)``.
        units: The independent unit that each sample comes from.
        seed: Of the resampling.

    Returns:
        Shape ``(rows, RESAMPLES)``.
    """
    values = np.asarray(scores, dtype=np.float64)
    _, member = np.unique(np.asarray(units), return_inverse=True)
    sizes = np.bincount(member)
    drawn = np.random.default_rng(seed).integers(len(sizes), size=(RESAMPLES, len(sizes)))
    weights = sizes[drawn].sum(1)
    sums = [np.bincount(member, weights=row) for row in values]
    return np.stack([sum_of[drawn].sum(1) / weights for sum_of in sums])


def bootstrap_interval(
    scores: ArrayLike,
    units: Sequence[object],
    *,
    level: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap the mean of ``scores`` by resampling whole units (Efron 1979, percentiles).

    Samples of one unit (the questions about one picture) rise and fall together: resampling
    them one by one would make the interval too narrow. Where all samples score the same (all
    right, say), resampling would claim to be certain; the interval then is exact: of so many
    units without an exception, exceptions are rarer than the limit of Clopper and Pearson (1934).

    Args:
        scores: Shape ``(samples,)``.
        units: The independent unit that each sample comes from.
        level: Share of the resampled means inside the interval.
        bounds: Between which a score can be; of differences between shares, (-1, 1).
        seed: Of the resampling.

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
        always, rare = float(values[0]), 1 - tail ** (1 / len(set(units)))
        return always - rare * (always - bounds[0]), always + rare * (bounds[1] - always)
    low, high = np.quantile(bootstrap_means(values[None], units, seed=seed)[0], [tail, 1 - tail])
    return float(low), float(high)
