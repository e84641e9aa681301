"""Rows of parquet files and of the Arrow tables of `datasets`.

pyarrow takes a fraction of a second to import, so that this module is imported by the functions
that read such rows.
"""

from __future__ import annotations

import json
import mmap
import weakref
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.data.row_source import RowPlace
from effllava_optuna.tasks.schemas.row_schema import UntypedFloat, UntypedInt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from effllava_optuna.tasks.data.row_source import RowSource

_CACHED_BYTES = 2**28  # decoded columns of parquet files that are kept, of all files together
_BATCH = 1024  # rows that are converted at once


@dataclass(frozen=True, eq=False)
class ArrowRows:
    """The rows of an Arrow table, which is in memory or mapped from a file.

    Attributes:
        table: A `pyarrow.Table`.
        file: The file that it is mapped from; None: another source.
    """

    table: Any
    file: Path | None = None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns."""
        return tuple(self.table.column_names)

    def iterate(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Iterate over the rows with the given columns; a column that does not exist is None."""
        existing = [name for name in columns if name in self.columns]
        for start in range(0, len(self), _BATCH):
            part = self.table.select(existing).slice(start, _BATCH)
            yield from _rows(part, columns)

    def value(self, row: int, column: str) -> Any:
        """Return one value."""
        if column not in self.columns:
            return None
        values = self.table.column(column)
        return _decoded(values.type, values[row].as_py())

    def place(self, row: int) -> RowPlace:
        """Return where a row is stored."""
        return RowPlace(self.file, f"row {row + 1}")

    def may_embed(self, column: str) -> bool:
        """Return whether the values of a column may be whole pictures, which take time to read."""
        return column in self.columns and not _is_text(self.table.schema.field(column).type)


class _RecentColumns:
    """Columns of row groups, by owner, row group and name; the ones used last.

    Attributes:
        limit: Largest number of bytes, unless one column alone is larger.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._columns: OrderedDict[tuple[int, int, str], Any] = OrderedDict()

    def get(self, key: tuple[int, int, str]) -> Any:
        """Return a column; None if it is not kept."""
        if key in self._columns:
            self._columns.move_to_end(key)
        return self._columns.get(key)

    def add(self, key: tuple[int, int, str], column: Any) -> None:
        """Add a column, and drop those that were not used for the longest time."""
        self._columns[key] = column
        while len(self._columns) > 1 and self.n_bytes > self.limit:
            self._columns.popitem(last=False)

    @property
    def n_bytes(self) -> int:
        """Return the size of all columns."""
        return sum(int(column.nbytes) for column in self._columns.values())

    def remove(self, owner: int) -> None:
        """Drop the columns of an owner."""
        for key in [key for key in self._columns if key[0] == owner]:
            del self._columns[key]


_RECENT = _RecentColumns(_CACHED_BYTES)


class ParquetRows:
    """The rows of a parquet file, which are decoded when they are read.

    A value is read with its row group. The row groups that were used last are kept, because
    neighbouring rows are often read one after another.

    Args:
        file: The file.

    Raises:
        TaskError: Two columns have one name.
        pyarrow.ArrowException: The file cannot be read as parquet.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        # A file object: pyarrow takes some paths as URIs, and cannot open names outside UTF-8.
        opened = file.open("rb")
        weakref.finalize(self, opened.close)
        self._parquet = pq.ParquetFile(opened)
        metadata = self._parquet.metadata
        sizes = [int(metadata.row_group(i).num_rows) for i in range(metadata.num_row_groups)]
        self._starts: list[int] = [0, *accumulate(sizes)]
        weakref.finalize(self, _RECENT.remove, id(self))
        self.columns: tuple[str, ...] = tuple(self._parquet.schema_arrow.names)
        if len(set(self.columns)) < len(self.columns):
            raise TaskError(f"{file}: two columns have the same name.", hint="Rename one of them.")

    def __len__(self) -> int:
        return self._starts[-1]

    def iterate(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Iterate over the rows with the given columns; a column that does not exist is None."""
        existing = [name for name in columns if name in self.columns]
        if not existing:
            yield from (dict.fromkeys(columns) for _ in range(len(self)))
            return
        for batch in self._parquet.iter_batches(_BATCH, columns=existing):
            yield from _rows(batch, columns)

    def value(self, row: int, column: str) -> Any:
        """Return one value."""
        if column not in self.columns:
            return None
        group = bisect_right(self._starts, row) - 1
        key = id(self), group, column
        values = _RECENT.get(key)
        if values is None:
            values = self._parquet.read_row_group(group, columns=[column]).column(column)
            _RECENT.add(key, values)
        return _decoded(values.type, values[row - self._starts[group]].as_py())

    def place(self, row: int) -> RowPlace:
        """Return where a row is stored."""
        return RowPlace(self._file, f"row {row + 1}")

    def may_embed(self, column: str) -> bool:
        """Return whether the values of a column may be whole pictures, which take time to read."""
        schema = self._parquet.schema_arrow
        return column in self.columns and not _is_text(schema.field(column).type)


def map_arrow_file(file: Path) -> ArrowRows:
    """Map a file of a directory that ``save_to_disk`` wrote into memory.

    Raises:
        OSError: The file cannot be read.
        pyarrow.ArrowException: It is not an Arrow stream.
    """
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return ArrowRows(pa.ipc.open_stream(pa.py_buffer(mapped)).read_all(), file)


def _rows(part: Any, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Convert a table or batch to rows."""
    encoded = {field.name: field.type for field in part.schema if _holds_json(field.type)}
    for values in part.to_pylist():
        row = {name: values.get(name) for name in columns}
        yield row | {name: _decoded(kind, row[name]) for name, kind in encoded.items()}


def _decoded(kind: Any, value: Any) -> Any:
    """Decode JSON texts: `datasets` stores columns of several types as such."""
    if value is None or not _holds_json(kind):
        return value
    if isinstance(kind, pa.JsonType):
        return json.loads(value, parse_int=UntypedInt, parse_float=UntypedFloat)
    if isinstance(value, dict):
        return {field.name: _decoded(field.type, value[field.name]) for field in kind}
    return [_decoded(kind.field(0).type, item) for item in value]


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _holds_json(kind: Any) -> bool:
    if pa.types.is_map(kind):
        return False
    children = (kind.field(index).type for index in range(kind.num_fields))
    return isinstance(kind, pa.JsonType) or any(map(_holds_json, children))


if TYPE_CHECKING:
    _: tuple[Callable[[Any], RowSource], ...] = (ArrowRows, ParquetRows)
