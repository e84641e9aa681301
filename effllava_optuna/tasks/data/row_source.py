"""Where the rows of a dataset are stored: the interface, and several sources as one."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


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
        index = bisect_right(self._starts, row) - 1
        return self.sources[index].value(row - self._starts[index], column)

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(len(source) for source in self.sources)]


if TYPE_CHECKING:
    _: Callable[[list[RowSource]], RowSource] = JoinedRows
