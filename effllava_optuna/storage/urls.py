"""URLs of storages, and the files that they name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy
from optuna.storages import RDBStorage

from effllava_optuna.errors import StudyError
from effllava_optuna.files import expand_home
from effllava_optuna.passwords import shown_url
from effllava_optuna.storage.storage_internals import (
    backend_of,
    grpc_address_of,
    journal_file_of,
    storage_of,
)

if TYPE_CHECKING:
    from optuna import Study

JOURNAL = "journal:///"
GRPC = "grpc://"
_FILES = ("sqlite", "journal")  # kinds of URLs that name a file
_HINT = (
    "Use sqlite:///FILE.db, journal:///FILE.log, postgresql+psycopg://HOST/NAME or "
    "grpc://HOST:PORT."
)
# Why a kind of database cannot be used; empty for those that can.
_REASONS = {
    "sqlite": "",
    "postgresql": "",
    "mysql": "MySQL keeps 64 kB of an attribute, and calibration needs more",
    "mariadb": "MariaDB keeps 64 kB of an attribute, and calibration needs more",
}


def sqlite_url(file: Path) -> str:
    """Return the URL of a SQLite file.

    SQLAlchemy takes what follows a question mark as options, and decodes percent signs.

    Example:
        >>> sqlite_url(Path("/a [1]/50%?.db"))
        'sqlite:////a [1]/50%25%3F.db'
    """
    return f"sqlite:///{_quoted(file)}"


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3F")


def absolute_url(url: str, directory: Path) -> str:
    """Return a URL in which the file of a SQLite or journal URL is relative to a directory.

    Example:
        >>> absolute_url("sqlite:///a.db?timeout=3", Path("/studies"))
        'sqlite:////studies/a.db?timeout=3'
        >>> absolute_url("journal:///../a.log", Path("/studies"))
        'journal:////a.log'
        >>> absolute_url("grpc://host:1", Path("/studies"))
        'grpc://host:1'
    """
    kind, separator, rest = url.partition(":///")
    file, mark, query = rest.partition("?")
    if kind.partition("+")[0] not in _FILES or not file or file == ":memory:":
        return url
    place = directory if url.startswith(JOURNAL) else Path(_quoted(directory))
    path = os.path.normpath(place / expand_home(file))
    return f"{kind}{separator}{path}{mark}{query}"


def expand_url(url: str) -> str:
    """Replace a leading ``~`` of the file of a SQLite or journal URL by the home directory.

    Example:
        >>> expand_url("sqlite:///~/a.db") == f"sqlite:///{Path.home()}/a.db"
        True
        >>> expand_url("postgresql:///~a")
        'postgresql:///~a'
    """
    kind, separator, file = url.partition(":///")
    if kind.partition("+")[0] not in _FILES or not file.startswith("~"):
        return url
    first, slash, others = file.partition("/")
    return f"{kind}{separator}{expand_home(first)}{slash}{others}"


def file_of(url: str) -> Path | None:
    """Return the file of a SQLite or journal URL; None for servers.

    Raises:
        StudyError: The URL is not valid.
    """
    if url.startswith(JOURNAL):
        return Path(expand_url(url).removeprefix(JOURNAL))
    if url.startswith(GRPC):
        return None
    return sqlite_file(url)


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite URL; None for other storages.

    Raises:
        StudyError: The URL is not valid.
    """
    try:
        parsed = sqlalchemy.make_url(expand_url(url))
    except (sqlalchemy.exc.ArgumentError, ValueError):  # of a port; it may be part of a password
        raise StudyError(f"{shown_url(url)!r} is not a database URL.", hint=_HINT) from None
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return Path(parsed.database)


def check_url(url: str) -> None:
    """Check that a URL names a supported storage, without opening it.

    Raises:
        StudyError: The URL is not valid, or its kind of storage is not supported.
    """
    if url.startswith((JOURNAL, GRPC)):
        if not url.removeprefix(JOURNAL).removeprefix(GRPC):
            raise StudyError(f"{shown_url(url)!r} has no file or host.", hint=_HINT)
        return
    file = sqlite_file(url)
    kind = sqlalchemy.make_url(url).get_backend_name()
    if "@" in (sqlalchemy.make_url(url).host or ""):
        raise StudyError(
            f"{shown_url(url)!r} has an @ in its password or user name.", hint="Write %40 instead."
        )
    if kind not in _REASONS:
        raise StudyError(f"{shown_url(url)!r}: {kind} is not supported.", hint=_HINT)
    if _REASONS[kind]:
        raise StudyError(f"{shown_url(url)!r}: {_REASONS[kind]}.", hint=_HINT)
    if kind == "sqlite" and (file is None or str(file) == ":memory:"):
        raise StudyError(f"{shown_url(url)!r} has no file.", hint=_HINT)
    if kind == "sqlite" and str(file).startswith("file:"):
        raise StudyError(f"{shown_url(url)!r} names its file by a URI.", hint=_HINT)


def sqlite_url_of(study: Study) -> str | None:
    """Return the URL of the SQLite database of a study; None for other storages."""
    url = getattr(backend_of(storage_of(study)), "url", None)
    return url if isinstance(url, str) and sqlite_file(url) is not None else None


def shareable_url(study: Study) -> str:
    """Return the storage of a study without directories and passwords, for a public page."""
    storage = storage_of(study)
    backend = backend_of(storage)
    if isinstance(backend, RDBStorage):
        url = sqlalchemy.make_url(backend.url)
        if url.get_backend_name() == "sqlite" and url.database:
            url = url.set(database=Path(url.database).name)
        return shown_url(url.render_as_string(hide_password=True))
    file = journal_file_of(storage)
    if file is not None:
        return f"{JOURNAL}{file.name}"
    address = grpc_address_of(storage)
    return "URL" if address is None else f"{GRPC}{address}"
