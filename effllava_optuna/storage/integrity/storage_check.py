"""Check whether a storage opens, is intact and can be written."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from optuna.storages import RDBStorage

from effllava_optuna.errors import EffllavaError
from effllava_optuna.passwords import hide_passwords, shown_url
from effllava_optuna.storage.backends.database_errors import cure_of
from effllava_optuna.storage.backends.journal_file import torn_writes
from effllava_optuna.storage.backends.read_only import (
    ReadOnlySqlite,
    is_read_only,
    read_only_error,
)
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.integrity.check_result import CheckResult, listed
from effllava_optuna.storage.storage_internals import backend_of, journal_file_of
from effllava_optuna.storage.urls import file_of, sqlite_file

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.storages import BaseStorage

    from effllava_optuna.storage.location import StudyLocation

_LOCK_TIMEOUT = 5.0  # seconds to wait for a process that writes


def check_storage(location: StudyLocation) -> list[CheckResult]:
    """Check whether the storage of a study opens, is intact and can be written.

    The storage is not changed.
    """
    try:
        file = file_of(location.url)
    except EffllavaError as error:
        return [CheckResult("storage", "fault", error.message, error.hint)]
    if file is not None and not file.exists():
        if location.file is not None:
            return [CheckResult("storage", "ok", f"{location.name!r} has not begun")]
        cure = "Use the URL of an existing database."
        return [
            CheckResult(
                "storage", "fault", hide_passwords(f"{file}: there is no such database"), cure
            )
        ]
    if sqlite_file(location.url) is not None and file is not None:
        problem = _sqlite_problem(file)
        if problem is not None:
            return [problem]
    try:
        storage = open_storage(location.url)
    except EffllavaError as error:
        return [CheckResult("storage", "fault", error.message, error.hint)]
    url = shown_url(location.url)
    if file is not None and is_read_only(file):
        refusal = read_only_error(file)
        result = CheckResult("storage", "warning", refusal.message.rstrip("."), refusal.hint)
    else:
        result = CheckResult("storage", "ok", f"{url} opens and can be written")
    return [result, *_check_schema(storage, url), *_check_journal(storage)]


def _check_schema(storage: BaseStorage, url: str) -> list[CheckResult]:
    """Check the version of the tables of a relational storage."""
    backend = backend_of(storage)
    if not isinstance(backend, RDBStorage):
        return []
    version, newest = backend.get_current_version(), backend.get_head_version()
    detail = f"{version}; this Optuna writes {newest}"
    if version == newest:
        return [CheckResult("schema", "ok", detail)]
    cure = f"Run `optuna storage upgrade --storage {url}`."
    return [CheckResult("schema", "fault", detail, cure)]


def _check_journal(storage: BaseStorage) -> list[CheckResult]:
    """Check a journal for writes that were interrupted."""
    file = journal_file_of(storage)
    torn = [] if file is None else torn_writes(file)
    if not torn:
        return []
    cure = "Nothing to do: only that write is lost, and the next one removes what is left of it."
    return [CheckResult("journal", "warning", f"{file}: {listed(torn)}", cure)]


def _sqlite_problem(file: Path) -> CheckResult | None:
    """Return a fault if a SQLite file is damaged, or locked by another process."""
    writable = not is_read_only(file)
    uri = f"{file.absolute().as_uri()}?mode=rw"
    connect = partial(sqlite3.connect, uri, uri=True, timeout=_LOCK_TIMEOUT)
    try:
        with closing(connect() if writable else ReadOnlySqlite(file).connect()) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                return CheckResult("storage", "fault", f"{file}: {verdict}", cure_of("corrupt"))
            if writable:
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()
    except sqlite3.DatabaseError as error:
        return CheckResult("storage", "fault", f"{file}: {error}", cure_of(str(error)))
    return None
