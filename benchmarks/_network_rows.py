"""Cells of tables of networks that were measured on the same pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from _means import Mean

from effllava_optuna.policy import bootstrap_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _records import Record
    from numpy.typing import ArrayLike


def accuracy_cell(rows: Sequence[Record]) -> str:
    """Format the accuracy over all draws with its interval.

    Args:
        rows: A network's record in each draw.
    """
    if not rows:
        return "-"
    right, asked = (np.concatenate([row[name] for row in rows]) for name in ("right", "asked"))
    low, high = _interval(right, asked, (0.0, 1.0))
    return f"{right.sum() / asked.sum():.3f} [{low:.3f}, {high:.3f}]"


def gain_of(rows: Sequence[Record], others: Sequence[Record]) -> Mean:
    """Compute the difference in accuracy of two networks, paired by picture.

    Args:
        rows: One network's record in each draw.
        others: The other network's, in the same order of draws.

    Returns:
        The mean over questions with its bootstrap interval; its count is that of the pictures.
    """
    if not rows or len(rows) != len(others):
        return Mean(float("nan"), float("nan"), float("nan"), 0)
    asked = np.concatenate([row["asked"] for row in rows])
    gains = np.concatenate(
        [
            np.subtract(row["right"], other["right"])
            for row, other in zip(rows, others, strict=True)
        ]
    )
    interval = _interval(gains, asked, (-1.0, 1.0))
    return Mean(float(gains.sum() / asked.sum()), *interval, len(asked))


def gain_cell(rows: Sequence[Record], others: Sequence[Record]) -> str:
    """Format `gain_of`, in bold if it is decided."""
    gain = gain_of(rows, others)
    if not gain.count:
        return "-"
    mark = "**" if gain.decided else ""
    return f"{mark}{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]{mark}"


def mean_cell(rows: Sequence[Record], field: str) -> str:
    """Format the mean of a field over the draws, and its range."""
    values = [row[field] for row in rows]
    if not values:
        return "-"
    return f"{np.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def _interval(
    counts: ArrayLike, asked: ArrayLike, bounds: tuple[float, float]
) -> tuple[float, float]:
    """Return the interval of a count per question; the questions about a picture are a group."""
    asked = np.asarray(asked)
    pictures = np.repeat(np.arange(len(asked)), asked)
    shares = np.repeat(np.divide(counts, asked), asked)
    return bootstrap_interval(shares, pictures.tolist(), bounds=bounds)
