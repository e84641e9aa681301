"""Means with intervals, paired differences, and tables of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

    Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean and its 95 % interval (Student's t).

    Attributes:
        value: The mean.
        low: Lower end of the interval; NaN for a single value.
        high: Upper end of the interval; NaN for a single value.
        count: Number of values.
    """

    value: float
    low: float
    high: float
    count: int

    @property
    def parts(self) -> list[float]:
        """Return value, interval and count for JSON."""
        return [round(self.value, 5), round(self.low, 5), round(self.high, 5), self.count]

    @property
    def decided(self) -> bool:
        """Return whether 0 is outside the interval."""
        return self.low > 0 or self.high < 0

    def text(self, sign: str = "") -> str:
        """Format the mean with its interval; ``sign`` is ``+`` for differences."""
        if not self.count:
            return "-"
        if self.count == 1:
            return f"{self.value:{sign}.3f} (one)"
        if self.low == self.high:
            return f"{self.value:{sign}.3f} (all {self.count})"
        return f"{self.value:{sign}.3f} [{self.low:{sign}.3f}, {self.high:{sign}.3f}]"


# Quantiles of Student's t for 95 % intervals, by degrees of freedom from 1.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def mean(values: ArrayLike) -> Mean:
    """Compute the mean of values and its interval."""
    sample = np.asarray(values, dtype=float)
    count = len(sample)
    middle = float(sample.mean()) if count else float("nan")
    if count < 2:
        return Mean(middle, float("nan"), float("nan"), count)
    t = _T[count - 2] if count - 1 <= len(_T) else 1.96 + 2.5 / (count - 1)
    half = t * float(sample.std(ddof=1)) / np.sqrt(count)
    return Mean(middle, middle - half, middle + half, count)


def difference(minuend: Mapping[Any, float], subtrahend: Mapping[Any, float]) -> Mean:
    """Compute the mean difference ``minuend - subtrahend`` over the keys that both have."""
    return mean([minuend[key] - subtrahend[key] for key in minuend if key in subtrahend])


def label(path: str) -> str:
    """Return the name of a model in a table."""
    return Path(path).name


def by_pair(rows: Rows, *path: str) -> dict[Any, float]:
    """Return one field of records by model and seed; ``path`` leads to the field."""
    figures = {}
    for row in rows:
        value: Any = row
        for name in path:
            value = value[name]
        figures[row["model"], row["seed"]] = float(value)
    return figures


def by_model(figures: Mapping[Any, float], models: Mapping[str, str]) -> list[str]:
    """Return the mean of figures by pair, as a cell for each model."""
    return [
        mean([value for (name, _), value in figures.items() if name == model]).text()
        for model in models
    ]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
