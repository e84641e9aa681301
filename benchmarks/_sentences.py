"""Sentences about figures: paragraphs, lists, and accuracies with their intervals."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _means import Mean


def paragraph(text: str) -> str:
    """Fill a paragraph to the width of a line."""
    words = " ".join(text.split())
    return textwrap.fill(words, 99, break_on_hyphens=False, break_long_words=False)


def points(value: float) -> str:
    """Format the size of an accuracy difference in percentage points."""
    return f"{100 * abs(value):.1f} points"


def joined(names: Iterable[str], separator: str = ";") -> str:
    """Join names to a list in a sentence."""
    *most, last = names
    return f"{f'{separator} '.join(most)}{separator} and {last}" if most else last


def value_range(values: Iterable[float], form: str = ".2f") -> str:
    """Format the smallest and the largest of values."""
    ordered = sorted(values)
    low, high = (format(end, form) for end in (ordered[0], ordered[-1]))
    return low if low == high else f"{low} to {high}"


def plural(count: int, noun: str) -> str:
    """Format a count with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def gains(named: Iterable[tuple[str, Mean]]) -> str:
    """Format differences with their intervals as a list in a sentence, each for its name."""
    texts = [f"{gain.text('+')} for {name}" for name, gain in named]
    return joined(texts) if texts else "not measured"
