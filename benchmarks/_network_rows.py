"""Cells of tables of networks that were measured on the same pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from _means import Mean

from effllava_optuna.policy import bootstrap_interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from _records import Record
    from numpy.typing import ArrayLike, NDArray

ByDraw: TypeAlias = "Mapping[Any, Record]"
"""The records of one network, by draw."""


def accuracy_of(rows: ByDraw) -> tuple[float, float, float]:
    """Return the accuracy of a network over all draws, and the ends of its interval."""
    right, asked = _counts(rows, "right", rows), _counts(rows, "asked", rows)
    low, high = _interval(right, asked, (0.0, 1.0))
    return float(right.sum() / asked.sum()), low, high


def accuracy_cell(rows: ByDraw) -> str:
    """Format the accuracy of a network over all draws, with its interval."""
    if not rows:
        return "-"
    value, low, high = accuracy_of(rows)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def gain_of(rows: ByDraw, others: ByDraw) -> Mean:
    """Compute the difference in accuracy of two networks, paired by picture.

    Args:
        rows: One network's records.
        others: The other network's; draws that only one of them has do not count.

    Returns:
        The mean over questions with its bootstrap interval; its count is that of the pictures.
    """
    draws = [draw for draw in rows if draw in others]
    if not draws:
        return Mean(float("nan"), float("nan"), float("nan"), 0)
    asked = _counts(rows, "asked", draws)
    gains = _counts(rows, "right", draws) - _counts(others, "right", draws)
    interval = _interval(gains, asked, (-1.0, 1.0))
    return Mean(float(gains.sum() / asked.sum()), *interval, len(asked))


def gain_cell(rows: ByDraw, others: ByDraw) -> str:
    """Format `gain_of`, in bold if it is decided."""
    gain = gain_of(rows, others)
    if not gain.count:
        return "-"
    mark = "**" if gain.decided else ""
    return f"{mark}{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]{mark}"


def mean_cell(rows: ByDraw, field: str) -> str:
    """Format the mean of a field over the draws that have it, and its range."""
    values = [row[field] for row in rows.values() if row[field] is not None]
    if not values:
        return "-"
    middle, low, high = map(_short, (float(np.mean(values)), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def _short(value: float) -> str:
    """Format three digits of a number, without an exponent."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def _counts(rows: ByDraw, field: str, draws: Iterable[Any]) -> NDArray[np.int64]:
    return np.concatenate([np.asarray(rows[draw][field], dtype=np.int64) for draw in draws])


def _interval(
    counts: ArrayLike, asked: ArrayLike, bounds: tuple[float, float]
) -> tuple[float, float]:
    """Return the interval of a count per question; the questions about a picture are a group."""
    asked = np.asarray(asked)
    pictures = np.repeat(np.arange(len(asked)), asked)
    shares = np.repeat(np.divide(counts, asked), asked)
    return bootstrap_interval(shares, pictures.tolist(), bounds=bounds)
