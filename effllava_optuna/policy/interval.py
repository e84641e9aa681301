"""How sure a mean of scores is, when samples come in independent groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

RESAMPLES = 2000


def bootstrap_interval(
    scores: ArrayLike, units: Sequence[str], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap the mean of ``scores`` by resampling whole units (Efron 1979, percentiles).

    Samples of one unit (the questions about one picture) rise and fall together: resampling
    them one by one would make the interval too narrow.

    Args:
        scores: Shape ``(samples,)``.
        units: The independent unit that each sample comes from.
        level: Share of the resampled means inside the interval.
        seed: Of the resampling.

    Returns:
        The lower and the upper end.

    Example:
        >>> bootstrap_interval([1, 1, 0, 0], ["a", "a", "b", "b"])
        (0.0, 1.0)
    """
    values = np.asarray(scores, dtype=np.float64)
    _, member = np.unique(np.asarray(units), return_inverse=True)
    sums = np.bincount(member, weights=values)
    sizes = np.bincount(member)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
