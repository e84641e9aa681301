"""Optuna's journal file, which a torn write does not damage.

A record is a line. A process that is killed, or whose disk is full, may leave half a line. Optuna
appends the next record to it, and nobody can read the result (Optuna issue 5138). Here half a line
is cut, under the lock, before the next record is written. No reader has applied it: a record
counts when its line has an end.
"""

from __future__ import annotations

import io
import json
import os
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from effllava_optuna.errors import StudyError
from effllava_optuna.storage.backends.read_only import is_read_only, read_only_error
from effllava_optuna.storage.backends.watched_file import WatchedFile

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

_START = b'{"op_code"'  # of a record; inside a record its quotation marks are escaped
_BLOCK = 1 << 16  # bytes


class JournalFile(JournalFileBackend):
    """A journal in a file, for ``JournalStorage``; other processes may use Optuna's class.

    Args:
        file: The file; it is created if it does not exist.
    """

    def __init__(self, file: Path) -> None:
        self.file = file.absolute()  # the working directory may change
        self._writer_lock = JournalFileOpenLock(str(self.file))
        super().__init__(str(self.file), lock_obj=self._writer_lock)
        self._watched = WatchedFile(self.file)
        # While it is open, no other file gets its inode, by which a replaced file is recognised.
        weakref.finalize(self, os.close, os.open(self.file, os.O_RDONLY))
        self._offsets = {0: 0}  # by the number of records before it
        self.n_read = 0  # records up to the last one that was read

    @property
    def read_only(self) -> bool:
        """Return whether the file, or its directory, in which it is locked, is read-only."""
        return is_read_only(self.file)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Read the records from a number on.

        Raises:
            StudyError: A line is not a record, and it is not the last one; or the file is not the
                one that was opened.
        """
        self._watched.check()
        with self.file.open("rb") as file:
            end = os.fstat(file.fileno()).st_size  # others may write meanwhile
            number = log_number_from if log_number_from in self._offsets else 0
            position = file.seek(self._offsets[number])
            if position > end:
                raise StudyError(
                    f"{self.file} is shorter than before: it was cut while this process used it.",
                    hint="Restore it from a copy, then continue with `resume`.",
                )
            while position < end:
                line = file.readline()
                position += len(line)
                if position > end:
                    return
                record = _record_of(line)
                if record is None:
                    if position == end and _may_be_torn(line):
                        return
                    raise StudyError(
                        f"{self.file}: line {number + 1} is not a record of a journal: "
                        f"{line[:40]!r}.",
                        hint="Restore it from a copy, or use another file.",
                    )
                number += 1
                self._offsets[number] = position
                if number > log_number_from:
                    self.n_read = number
                    yield record

    def append_logs(self, logs: Sequence[dict[str, Any]]) -> None:
        """Append records; they are on disk when this returns.

        Raises:
            StudyError: The file or its directory is read-only, or it is not the one that was
                opened.
            StorageInternalError: They cannot be written. No part of them remains in the file.
        """
        self._watched.check()
        if self.read_only:
            raise read_only_error(self.file)
        lines = [json.dumps(log, separators=(",", ":")) for log in logs]
        data = "".join(f"{line}\n" for line in lines).encode()
        try:
            self._writer_lock.acquire()
            try:
                with io.FileIO(self.file, "r+", opener=_append) as file:
                    _write(file, data, after=_end_of_records(file))
            finally:
                self._writer_lock.release()
        except OSError as error:
            raise StorageInternalError(f"{self.file}: {error.strerror or error}") from error


def torn_writes(file: Path) -> list[str]:
    """Describe the half lines in a journal, without changing it.

    Raises:
        StudyError: Another line is not a record.
        OSError: The file cannot be read.
    """
    descriptions = []
    backend = JournalFile(file)
    n_records = sum(1 for _ in backend.read_logs(0))
    with file.open("rb") as journal:
        for number, line in enumerate(journal, 1):
            if number > n_records:
                descriptions.append(f"line {number} is half a record of {len(line)} bytes")
            elif _loaded(line) is None:
                descriptions.append(f"line {number} starts with half a record")
    return descriptions


def _append(path: str, flags: int) -> int:
    """Open a file so that all writes go to its end, without creating it."""
    return os.open(path, flags | os.O_APPEND)


def _write(file: io.FileIO, data: bytes, *, after: int) -> None:
    """Cut a file at an offset and write after it: all of ``data`` or, on an error, nothing."""
    file.truncate(after)
    written = 0
    try:
        while written < len(data):
            written += file.write(data[written:])
    except OSError:
        with suppress(OSError):  # what remains is cut before the next write
            file.truncate(after)
        raise
    # No cut from here on: others may have read the record.
    os.fsync(file.fileno())


def _end_of_records(file: io.FileIO) -> int:
    """Return the offset after the last record, where half a line may start."""
    end = start = file.seek(0, os.SEEK_END)
    tail = b""
    while start > 0 and b"\n" not in tail[:-1]:
        length = min(_BLOCK, start)
        start = file.seek(start - length)
        tail = file.read(length) + tail
    line = tail[tail.rfind(b"\n", 0, max(0, len(tail) - 1)) + 1 :]
    return end - len(line) if _may_be_torn(line) and _record_of(line) is None else end


def _record_of(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line; None if it is not complete.

    Another program may have appended the record to half a line. It is the one that counts.
    """
    if not line.endswith(b"\n"):
        return None
    start = line.rfind(_START)
    return _loaded(line) or (_loaded(line[start:]) if start > 0 else None)


def _loaded(text: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(text.decode())
    except ValueError:
        return None
    return record if isinstance(record, dict) and "op_code" in record else None


def _may_be_torn(line: bytes) -> bool:
    """Return whether a line starts as a record, or as one that a power failure left empty."""
    return line.startswith((_START, b"\0")) or _START.startswith(line)
