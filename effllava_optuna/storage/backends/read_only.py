"""Reading of storages in a place that cannot be written (optuna PR 5103).

SQLite reads a database in a write-ahead log only if it can create two files beside it, or if both
are there. So a read-only database is opened as such where SQLite can, and otherwise read from a
copy, in which SQLite applies the log or undoes the transaction that a killed process has left.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy

from effllava_optuna.errors import StudyError
from effllava_optuna.files import why_unwritable

if TYPE_CHECKING:
    from typing import Any

    from sqlalchemy import Engine

_LOGS = ("-wal", "-journal")  # suffixes of the files that belong to a database
_READS = ("SELECT", "PRAGMA", "BEGIN", "WITH")
_TIMEOUT = 60.0  # seconds to wait for a process that writes


def is_read_only(file: Path) -> bool:
    """Return whether a storage exists, and it or the files beside it cannot be written."""
    real = Path(os.path.realpath(file))
    beside = real.with_name(f"{real.name}{_LOGS[0]}")
    return real.is_file() and bool(why_unwritable(real) or why_unwritable(beside))


def read_only_error(file: Path) -> StudyError:
    """Return the error about a write to a storage that cannot be written."""
    return StudyError(
        f"{file} cannot be written: the file or its directory is read-only.",
        hint="Copy the study and its artifacts to another directory, or grant write access; "
        "`status`, `report`, `pick`, `evaluate`, `export` and `dashboard` only read it.",
    )


class ReadOnlySqlite:
    """A SQLite database that is never written.

    Args:
        file: The database.

    Raises:
        sqlite3.Error: It cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._read_from = file
        try:
            _read(self._connect())
        except sqlite3.OperationalError:
            directory = Path(tempfile.mkdtemp(prefix="effllava-read-only-"))
            atexit.register(shutil.rmtree, directory, ignore_errors=True)
            self._read_from = _copied(file, directory)
            _read(self._connect())

    def connect(self) -> sqlite3.Connection:
        """Open a connection, for all threads."""
        return self._connect()

    def configure(self, engine: Engine) -> None:
        """Refuse all statements of an engine that write.

        SQLite would say only that it attempts to write a read-only database.
        """

        @sqlalchemy.event.listens_for(engine, "before_cursor_execute")
        def _refuse(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if not statement.lstrip().upper().startswith(_READS):
                raise read_only_error(self.file)

    def _connect(self) -> sqlite3.Connection:
        uri = f"{self._read_from.absolute().as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, timeout=_TIMEOUT, check_same_thread=False)


def _read(connection: sqlite3.Connection) -> None:
    with closing(connection):
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _copied(file: Path, directory: Path) -> Path:
    """Copy a database with its logs, and apply the logs; return the copy."""
    file = Path(os.path.realpath(file))  # the logs are beside the file, not beside a link to it
    for suffix in ("", *_LOGS):
        source = file.with_name(file.name + suffix)
        if source.exists():
            # Without the attributes, which may forbid to write.
            shutil.copyfile(source, directory / source.name)
    copy = directory / file.name
    _read(sqlite3.connect(copy))
    return copy
