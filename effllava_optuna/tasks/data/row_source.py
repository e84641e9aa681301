"""Where the rows of a dataset are stored: the interface, and several sources as one."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


class RowPlace(NamedTuple):
    """Where a row is stored, for messages.

    Attributes:
        file: The file; None: the row is in no file of the user.
        line: The line of the file, or the number of the row, from 1: ``"line 7"``, ``"row 7"``.
    """

    file: Path | None
    line: str


class RowSource(Protocol):
    """Rows whose values are those that the file has; a missing value is None."""

    def __len__(self) -> int:
        """Return the number of rows."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns."""

    def iterate(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Iterate over the rows with the given columns; a column that does not exist is None."""

    def value(self, row: int, column: str) -> Any:
        """Return one value."""

    def place(self, row: int) -> RowPlace:
        """Return where a row is stored."""

    def may_embed(self, column: str) -> bool:
        """Return whether the values of a column may be whole pictures, which take time to read."""


@dataclass(frozen=True, eq=False)
class JoinedRows:
    """The rows of several sources, one after another. Their columns may differ in type.

    Attributes:
        sources: The sources.
    """

    sources: Sequence[RowSource]

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns of all sources."""
        return tuple(dict.fromkeys(name for source in self.sources for name in source.columns))

    def iterate(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Iterate over the rows with the given columns; a column that does not exist is None."""
        for source in self.sources:
            yield from source.iterate(columns)

    def value(self, row: int, column: str) -> Any:
        """Return one value."""
        source, number = self._locate(row)
        return source.value(number, column)

    def place(self, row: int) -> RowPlace:
        """Return where a row is stored."""
        source, number = self._locate(row)
        return source.place(number)

    def may_embed(self, column: str) -> bool:
        """Return whether the values of a column may be whole pictures, which take time to read."""
        return any(source.may_embed(column) for source in self.sources)

    def _locate(self, row: int) -> tuple[RowSource, int]:
        """Return the source of a row, and the number of the row in it."""
        index = bisect_right(self._starts, row) - 1
        return self.sources[index], row - self._starts[index]

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(len(source) for source in self.sources)]


def place_of(rows: RowSource, row: int, source: str = "the dataset") -> str:
    """Return where a row is stored, for messages: the file and the line, or its number from 1.

    Args:
        rows: The rows.
        row: Index of the row.
        source: Name of the rows if they are in no file of the user.
    """
    file, line = rows.place(row)
    return f"{file or source}, {line}"


if TYPE_CHECKING:
    _: Callable[[list[RowSource]], RowSource] = JoinedRows
