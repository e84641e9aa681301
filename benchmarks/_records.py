"""Records of measurements in JSONL files: one file for each question, one record on each line.

A line is a JSON object. Its field ``key`` identifies the measurement, for example
``["study", "first", 3, "tpe"]`` (kind, model, draw, case); the other fields hold the figures and
their provenance. Lines are sorted by key, so that a new record adds one line to a diff.

A file is replaced as a whole, under a lock on its folder. A process that is killed leaves the file
as it was, and concurrent processes do not lose records.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from effllava_optuna.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Key = tuple[str | int | float, ...]  # keys of one kind have one shape, so that they can be sorted
Record = dict[str, Any]


class RecordId(NamedTuple):
    """The file of a record and its key in the file.

    Attributes:
        question: Name of the file, without its suffix.
        key: Identifies the record in the file.
    """

    question: str
    key: Key

    def __str__(self) -> str:
        """Return the id as a line of progress shows it."""
        return " ".join(map(str, (self.question, *self.key)))


def read_records(file: Path) -> dict[Key, Record]:
    """Read the records of ``file`` by key; return none if the file does not exist.

    If several records have one key, the first one counts. A last line without a line end was
    truncated while it was copied or appended: it is ignored, and its record is measured again.

    Raises:
        ValueError: A complete line is not a record.
    """
    if not file.is_file():
        return {}
    records: dict[Key, Record] = {}
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                break
            try:
                record = json.loads(line)
                key = tuple(record.pop("key"))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{file}, line {number}: not a record. "
                    "Restore the line, or delete it: its record is measured again."
                ) from error
            records.setdefault(key, record)
    return records


def add_records(file: Path, added: Mapping[Key, Mapping[str, Any]]) -> None:
    """Add records to ``file``; existing records are not replaced."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file.parent):
        records = {**added, **read_records(file)}
        lines = [json.dumps({"key": key, **records[key]}) + "\n" for key in sorted(records)]
        write_atomically(file, "".join(lines))


class RecordStore:
    """The records of a folder. A file is read again only after it has changed.

    Args:
        folder: Holds one JSONL file for each question.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cache: dict[str, tuple[tuple[int, int] | None, dict[Key, Record]]] = {}

    def get(self, record_id: RecordId) -> Record | None:
        """Return a record, or None if it has not been measured."""
        return self._records(record_id.question).get(record_id.key)

    def add(self, record_id: RecordId, record: Mapping[str, Any]) -> None:
        """Store a record, unless one with its key exists."""
        add_records(self._file(record_id.question), {record_id.key: record})

    def _file(self, question: str) -> Path:
        return self.folder / f"{question}.jsonl"

    def _records(self, question: str) -> dict[Key, Record]:
        file = self._file(question)
        # Every change replaces the file, so that its inode changes.
        version = (file.stat().st_ino, file.stat().st_mtime_ns) if file.is_file() else None
        if question not in self._cache or self._cache[question][0] != version:
            self._cache[question] = version, read_records(file)
        return self._cache[question][1]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``folder``; the system releases it when a process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
