"""Opening of storages: SQLite, PostgreSQL, journal files and gRPC proxies."""

from __future__ import annotations

import sqlite3
import time
import warnings
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning

from effllava_optuna.errors import EffllavaError, StudyError, describe
from effllava_optuna.passwords import shown_url
from effllava_optuna.storage.backends.database_errors import cure_of
from effllava_optuna.storage.backends.read_only import ReadOnlySqlite, is_read_only
from effllava_optuna.storage.database import Database, configure_sqlite
from effllava_optuna.storage.storage_internals import with_cache
from effllava_optuna.storage.urls import (
    GRPC,
    JOURNAL,
    absolute_url,
    check_url,
    expand_url,
    file_of,
    sqlite_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.storages import BaseStorage

_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6)  # seconds between tries to create the tables
_LONGEST_CREATION = 20.0  # seconds
_OF_CREATION = ("already exists", "unique", "duplicate key", "locked", "deadlock")


def open_storage(url: str, *, create: bool = False) -> BaseStorage:
    """Open the storage at ``url``.

    Args:
        url: ``sqlite:///FILE``, ``journal:///FILE``, ``postgresql+psycopg://HOST/NAME``, or
            ``grpc://HOST:PORT`` of Optuna's proxy in front of a database.
        create: Create a file that does not exist. Missing tables on a server are always created.

    Raises:
        StudyError: The URL has another form, the file or server does not exist, or it is not an
            Optuna database of a version that this Optuna reads.
    """
    check_url(url)
    url = expand_url(url)
    file = file_of(url)
    if file is not None and not create and not file.is_file():
        raise StudyError(f"{file}: there is no such database.", hint="Start with `run`.")
    if file is not None and file.is_file() and sqlite_file(url) is not None:
        if is_read_only(file):
            return with_cache(_open_read_only(url, file))
        if not create:
            _refuse_other_database(file)
    if url.startswith(JOURNAL):
        return _open_journal(Path(url.removeprefix(JOURNAL)))
    if url.startswith(GRPC):
        return _open_proxy(url)
    return with_cache(_open_database(url, file))


def _open_read_only(url: str, file: Path) -> Database:
    """Open a SQLite database in a place that cannot be written.

    Raises:
        StudyError: It cannot be read.
    """
    try:
        source = ReadOnlySqlite(file)
    except (sqlite3.Error, OSError) as error:
        raise StudyError(
            f"{file}: cannot be read as an Optuna database: {describe(error)}.",
            hint="Use another file, or copy it with the files beside it.",
        ) from error
    _refuse_other_database(file, source.connect)
    return _open_database(url, file, source)


def _connected(url: str, read_only: ReadOnlySqlite | None) -> Database:
    """Connect to a database, and create its tables if it has none.

    Optuna does not expect other processes to create them at the same time (issues 1092 and 5385),
    and fails at different statements; a later try finds what they have created.
    """
    is_sqlite = sqlalchemy.make_url(url).get_backend_name() == "sqlite"
    options: dict[str, Any] = {"pool_pre_ping": True}
    if is_sqlite:
        options = {"connect_args": {"timeout": 60}}
    if read_only is not None:
        options = {"creator": read_only.connect}
    absolute = absolute_url(url, Path.cwd())  # the working directory may change
    absolute = absolute.replace("{", "{{").replace("}", "}}")  # Optuna takes it as a template
    connect = partial(Database, absolute, read_only=read_only, engine_kwargs=options)
    start = time.monotonic()
    for pause in _PAUSES:
        try:
            return connect()
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            # SQLite has waited for a lock already, unless a wait would have been a deadlock.
            waited = time.monotonic() - start > _LONGEST_CREATION
            if waited or not _is_about_creation(error):
                raise
            time.sleep(pause)
    return connect()


def _is_about_creation(error: Exception) -> bool:
    """Return whether an error may come from another process that creates the same tables."""
    reason = str(error.__cause__ or error).lower()
    return isinstance(error, sqlalchemy.exc.IntegrityError) or any(
        words in reason for words in _OF_CREATION
    )


def _open_database(
    url: str, file: Path | None, read_only: ReadOnlySqlite | None = None
) -> Database:
    try:
        database = _connected(url, read_only)
        configure_sqlite(database)
        database.get_all_studies()
    except ImportError as error:
        raise StudyError(
            f"{shown_url(url)!r}: its driver is missing: {error}.",
            hint="Install effllava-optuna[postgresql], and write postgresql+psycopg://.",
        ) from error
    except (
        RuntimeError,
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
    ) as error:
        cause = error.__cause__ or error  # Optuna's own message hides that of the database
        reason = describe(getattr(cause, "orig", None) or cause)
        raise StudyError(
            f"{file or shown_url(url)}: cannot be opened as an Optuna database: {reason}.",
            hint=cure_of(reason, shown_url(url)),
        ) from error
    return database


def _refuse_other_database(
    file: Path, connect: Callable[[], sqlite3.Connection] | None = None
) -> None:
    """Refuse a SQLite file without studies: Optuna would add its tables to it.

    Raises:
        StudyError: The file has no table of studies.
    """
    try:
        uri = f"{file.absolute().as_uri()}?mode=ro"
        connect = connect or partial(sqlite3.connect, uri, uri=True, timeout=60)
        with closing(connect()) as connection:
            query = "SELECT count(*) FROM sqlite_master WHERE name = 'studies'"
            (n_tables,) = connection.execute(query).fetchone()
        reason = "there are no studies in it"
    except sqlite3.Error as error:
        n_tables, reason = 0, str(error)
    if not n_tables:
        raise StudyError(
            f"{file}: cannot be opened as an Optuna database: {reason}.", hint=cure_of(reason)
        )


def is_being_created(file: Path) -> bool:
    """Return whether a SQLite file has no tables yet: another process has just created it."""
    try:
        uri = f"{file.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=60)) as connection:
            (n_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        return False
    return not n_tables


def _open_journal(file: Path) -> BaseStorage:
    from optuna.storages.journal import JournalStorage

    from effllava_optuna.storage.backends.journal_file import JournalFile

    try:
        backend = JournalFile(file)
    except OSError as error:
        raise StudyError(
            f"{file}: cannot be opened as an Optuna journal: {error.strerror}.",
            hint=cure_of(str(error)),
        ) from error
    try:
        return JournalStorage(backend)
    except EffllavaError:
        raise
    except Exception as error:  # Optuna reads the fields of a record without checks
        raise StudyError(
            f"{file}: line {backend.n_read} is not a record that this Optuna can read: "
            f"{describe(error)}.",
            hint="Restore it from a copy, or use the Optuna that wrote it.",
        ) from error


def _open_proxy(url: str) -> BaseStorage:
    host, _, port = url.removeprefix(GRPC).partition(":")
    if not host or not port.isdigit():
        raise StudyError(
            f"{shown_url(url)!r} has no host or no port.", hint="Use grpc://HOST:PORT."
        )
    try:
        from optuna.storages import GrpcStorageProxy
    except ImportError as error:
        raise StudyError(
            f"{shown_url(url)!r}: {error}.", hint="Install effllava-optuna[grpc]."
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        proxy = GrpcStorageProxy(host=host, port=int(port))
    try:
        proxy.wait_server_ready(timeout=10)
    except Exception as error:  # errors of gRPC cannot be named without gRPC
        raise StudyError(
            f"{shown_url(url)!r} does not answer: {type(error).__name__}.",
            hint="Start optuna.storages.run_grpc_proxy_server in front of a database.",
        ) from error
    return proxy
