"""Tables of plain text, for the terminal and the HTML page, and the format of their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of a table.

    Attributes:
        cells: The text of each column; it may contain line breaks.
        emphasized: Whether the row stands out: bold on a terminal, shaded on the page.
    """

    cells: Sequence[str]
    emphasized: bool = False


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table that is not tied to a renderer.

    Attributes:
        columns: The headings; they may contain line breaks.
        rows: The rows, each with one cell per column.
        title: Shown above the table.
        notes: Lines shown below the table.
        left_columns: Number of left-aligned columns, counted from the left; the columns after
            them are right-aligned.
    """

    columns: Sequence[str]
    rows: Sequence[TableRow]
    title: str = ""
    notes: Sequence[str] = ()
    left_columns: int = 1


def format_number(value: Any, spec: str) -> str:
    """Return ``value`` formatted by ``spec``, or a dash if it is None."""
    return "-" if value is None else format(value, spec)


def format_interval(interval: Sequence[float], spec: str = ".3f", separator: str = ", ") -> str:
    """Return an interval as ``[low, high]``."""
    low, high = interval
    return f"[{low:{spec}}{separator}{high:{spec}}]"


def format_measured(measured: float | None, predicted: float | None, spec: str) -> str:
    """Return a measured value, and on a second line the predicted one in parentheses."""
    return f"{format_number(measured, spec)}\n({format_number(predicted, spec)})"


def format_count(count: int) -> str:
    """Return a large number with three digits, such as ``416K``, ``1.33M`` or ``6.74B``."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            digits = max(0, 3 - len(str(count // size)))
            return f"{count / size:.{digits}f}{letter}"
    return str(count)


def measure_of_split(document: Mapping[str, Any], split: str) -> str:
    """Return what the accuracies of a document on ``split`` are: an accuracy, or an agreement."""
    name: str = document["measures"].get(split, "accuracy")
    return name


def split_heading(document: Mapping[str, Any], split: str) -> str:
    """Return the heading of a column of accuracies: the measure, and the split below it."""
    return f"{measure_of_split(document, split)}\non {split}"


def format_accuracy(row: Mapping[str, Any], split: str) -> str:
    """Return the accuracy of a result row on ``split``, with its interval on a second line."""
    accuracy, interval = row[f"accuracy_{split}"], row[f"accuracy_{split}_interval"]
    if accuracy is None or interval is None:
        return format_number(accuracy, ".3f")
    return f"{accuracy:.3f}\n{format_interval(interval, separator=' ')}"
