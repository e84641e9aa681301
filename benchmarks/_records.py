"""Records of measurements in JSONL files: one file a question, one record a line.

A line is a JSON object. Its field ``key`` identifies the measurement, for example
``["study", "first", 3, "tpe"]`` (kind, model, draw, case); the other fields hold the figures and
their provenance. Lines are sorted by key, so that a new record adds one line to a diff.

A file is replaced as a whole, under a lock on its folder. A process that is killed leaves the file
as it was, and several processes at once lose no record.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Key = tuple[str | int | float, ...]  # keys of one kind have one shape, so that they can be sorted
Record = dict[str, Any]


class RecordId(NamedTuple):
    """The place of a record.

    Attributes:
        question: Name of the file, without its suffix.
        key: Identifies the record in the file.
    """

    question: str
    key: Key

    def __str__(self) -> str:
        """Return the place as a line of progress shows it."""
        return " ".join(map(str, (self.question, *self.key)))


def read_records(file: Path) -> dict[Key, Record]:
    """Read the records of ``file`` by key; a file that does not exist has none.

    Of several records with one key the first counts. A last line without a line end was cut while
    it was copied or appended: it is ignored, and its record is measured again.

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
    """Add records to ``file``; a record that is already there is kept as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file.parent):
        records = {**added, **read_records(file)}
        lines = [json.dumps({"key": key, **records[key]}) + "\n" for key in sorted(records)]
        draft = file.with_suffix(".draft")
        draft.write_text("".join(lines), encoding="utf-8")
        draft.replace(file)


class RecordStore:
    """The records of a folder. Files are read again only after they have changed.

    Args:
        folder: Holds one JSONL file a question.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, tuple[tuple[int, int] | None, dict[Key, Record]]] = {}

    def get(self, place: RecordId) -> Record | None:
        """Return a record, or None if it has not been measured."""
        return self._records(place.question).get(place.key)

    def add(self, place: RecordId, record: Mapping[str, Any]) -> None:
        """Keep a record."""
        add_records(self._file(place.question), {place.key: record})

    def _file(self, question: str) -> Path:
        return self.folder / f"{question}.jsonl"

    def _records(self, question: str) -> dict[Key, Record]:
        file = self._file(question)
        # Every change replaces the file, so that its inode changes.
        version = (file.stat().st_ino, file.stat().st_mtime_ns) if file.is_file() else None
        if question not in self._read or self._read[question][0] != version:
            self._read[question] = version, read_records(file)
        return self._read[question][1]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock that one process has at a time; the system releases it when a process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
