"""Storages that ``storage.py`` measures, and copies of the studies in them."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import sqlalchemy

if TYPE_CHECKING:
    from pathlib import Path


class FileStorage:
    """Studies in files.

    Args:
        scheme: ``sqlite`` or ``journal``.
        work: Directory of the files.
    """

    def __init__(self, scheme: str, work: Path) -> None:
        self.scheme, self.work = scheme, work

    def url(self, name: str) -> str:
        """Return the URL of a study."""
        return f"{self.scheme}:///{self.work / f'{name}.{self.scheme}'}"

    def copy(self, name: str, to: str) -> None:
        """Copy a study that is not open."""
        source, target = (self.work / f"{each}.{self.scheme}" for each in (name, to))
        for old in self.work.glob(f"{target.name}*"):
            old.unlink()
        if self.scheme == "sqlite":
            with (
                closing(sqlite3.connect(source)) as original,
                closing(sqlite3.connect(target)) as copy,
            ):
                original.backup(copy)
        else:
            shutil.copy(source, target)


class ServerStorage:
    """Studies in databases of a PostgreSQL server.

    Args:
        url: URL of the server, without a database.
    """

    def __init__(self, url: str) -> None:
        self.server = url.rstrip("/")
        self.admin = sqlalchemy.create_engine(
            f"{self.server}/postgres", isolation_level="AUTOCOMMIT"
        )
        self._execute("drop database if exists cost_base")
        self._execute("create database cost_base")

    def url(self, name: str) -> str:
        """Return the URL of a study."""
        return f"{self.server}/cost_{name}"

    def copy(self, name: str, to: str) -> None:
        """Copy a study that is not open."""
        self._execute(f"drop database if exists cost_{to}")
        self._execute(f"create database cost_{to} template cost_{name}")

    def _execute(self, statement: str) -> None:
        with self.admin.connect() as connection:
            connection.exec_driver_sql(statement)
