"""Rows of jsonl, json and csv files, with the values that the file has.

The files are parsed by the standard library. Readers that store a column under one type change
values: the text "1" becomes the number 1 if other rows have numbers (datasets issue 6460).
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import TaskError, shorten
from effllava_optuna.files import decode_text
from effllava_optuna.tasks.data.row_source import RowPlace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from effllava_optuna.tasks.data.row_source import RowSource

_DECODER = json.JSONDecoder(object_pairs_hook=lambda pairs: _unique_keys(pairs))


@dataclass(frozen=True, eq=False)
class ListedRows:
    """Rows in memory; a row may lack columns.

    Attributes:
        rows: Values by column.
        file: The file that they were read from; None: another source.
        lines: The line of the file that each row begins at; empty: not known.
    """

    rows: Sequence[dict[str, Any]]
    file: Path | None = None
    lines: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns, in the order of their first occurrence."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def iterate(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Iterate over the rows with the given columns."""
        return ({name: row.get(name) for name in columns} for row in self.rows)

    def value(self, row: int, column: str) -> Any:
        """Return one value."""
        return self.rows[row].get(column)

    def place(self, row: int) -> RowPlace:
        """Return where a row is stored."""
        line = f"line {self.lines[row]}" if self.lines else f"row {row + 1}"
        return RowPlace(self.file, line)

    def may_embed(self, column: str) -> bool:
        """Return False: the values are in memory."""
        return False


def read_json_lines(file: Path) -> ListedRows:
    """Read a file with one JSON object on each line.

    Raises:
        TaskError: A line is not a JSON object; the message has its number.
    """
    return _parse_lines(file, _read(file))


def read_json(file: Path) -> ListedRows:
    """Read a file with a list of JSON objects, or with one JSON object on each line.

    Raises:
        TaskError: The content is something else.
    """
    text = _read(file)
    try:
        rows = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        if not text.lstrip().startswith("["):
            return _parse_lines(file, text)
        raise TaskError(f"{file} is not valid JSON: {error}.", hint="Fix that line.") from error
    if not isinstance(rows, list):
        raise TaskError(
            f"{file} is one JSON {'object' if isinstance(rows, dict) else 'value'}, not a list "
            "of rows.",
            hint='Write [{"column": value, ...}, ...], or one object on each line.',
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise TaskError(
                f"{file}: row {number} is not an object.",
                hint='Write each row as {"column": value, ...}.',
            )
    return ListedRows(rows, file)


def read_csv(file: Path) -> ListedRows:
    """Read a csv file. All values are texts: '007' is not a number, and 'None' is an answer.

    Raises:
        TaskError: A line does not have as many cells as the header, or cannot be parsed; the
            message has its number.
    """
    # `strict`: without it, a quote that is not closed takes the rest of the file as one cell.
    reader = csv.reader(io.StringIO(_read(file), newline=""), strict=True)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    try:
        header = next(reader, [])
        if header and header[0].lstrip().startswith(("{", "[")):
            raise TaskError(
                f"{file}: its first line is JSON, not names of columns: {shorten(header[0])}.",
                hint="Rename it to .jsonl, or to .json if it is one list.",
            )
        if len(header) == 1 and re.search("[;\t]", header[0]):
            raise TaskError(
                f"{file}: its first line has no comma: {shorten(header[0])}.",
                hint="Separate the cells by commas.",
            )
        if len(set(header)) < len(header):
            raise TaskError(
                f"{file}: two columns of its first line have the same name.",
                hint="Rename one of them.",
            )
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise TaskError(
                    f"{file}: line {reader.line_num} does not have as many cells as the first "
                    f"line, which names {len(header)} columns.",
                    hint="Put cells with commas into quotes.",
                )
            if cells:
                rows.append(dict(zip(header, cells, strict=True)))
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise TaskError(
            f"{file}: line {reader.line_num} is not valid CSV: {error}.", hint="Fix that line."
        ) from error
    return ListedRows(rows, file, lines)


def _read(file: Path) -> str:
    try:
        return decode_text(file.read_bytes())
    except ValueError as error:
        raise TaskError(f"{file}: {error}.", hint="Save it as UTF-8.") from error


def _parse_lines(file: Path, text: str) -> ListedRows:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    # Not `splitlines`, which also divides at characters that JSON texts may have.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            # Each part of joined files may begin with a mark.
            row = _DECODER.decode(line.removeprefix("\ufeff"))
            if not isinstance(row, dict):
                raise ValueError("it is not an object")
        except (ValueError, RecursionError) as error:
            reason = str(error)
            if isinstance(error, json.JSONDecodeError):  # its own message names line 1
                reason = f"{error.msg} at column {error.colno}"
            hint = "Fix or remove that line."
            if not rows:  # perhaps another format
                hint = 'Write one JSON object on each line: {"question": "...", "answer": "..."}.'
                if line.lstrip("\ufeff ").startswith("["):
                    hint = "If the file is one list of rows, rename it to .json."
            raise TaskError(
                f"{file}: line {number} is not valid JSON: {reason}.", hint=hint
            ) from error
        rows.append(row)
        lines.append(number)
    return ListedRows(rows, file, lines)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {shorten(twice)} is specified twice")
    return row


if TYPE_CHECKING:
    _: Callable[[list[dict[str, Any]]], RowSource] = ListedRows
