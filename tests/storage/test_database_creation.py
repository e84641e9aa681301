"""Several processes create one database; errors of databases have cures that fit."""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest

from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.errors import StudyError
from effllava_optuna.storage.backends.database_errors import cure_of
from effllava_optuna.storage.connection import is_being_created, open_storage
from effllava_optuna.storage.storage_internals import backend_of
from effllava_optuna.storage.studies import create_study, refuse_existing, study_names
from tests.study_fixtures import invoke

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

THREADS = 6


def config(name: str) -> StudyConfig:
    return StudyConfig.of(
        {"study": {"name": name}, "model": {"path": "m"}, "task": {"name": "digits"}}
    )


def at_once(work: Callable[[int], object]) -> list[Exception | None]:
    """Do something in several threads at the same moment; return what each of them raised."""
    gate, raised = threading.Barrier(THREADS), list[Exception | None]([None] * THREADS)

    def one(number: int) -> None:
        gate.wait()
        try:
            work(number)
        except Exception as error:
            raised[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return raised


def test_processes_that_create_one_database_all_create_their_study(storage_url: str) -> None:
    raised = at_once(
        lambda number: create_study(open_storage(storage_url, create=True), config(f"s{number}"))
    )
    assert raised == [None] * THREADS
    assert study_names(storage_url) == [f"s{number}" for number in range(THREADS)]


def test_one_of_the_processes_that_create_one_study_does(storage_url: str) -> None:
    raised = at_once(lambda _: create_study(open_storage(storage_url, create=True), config("s")))
    assert raised.count(None) == 1
    for error in raised:
        assert error is None or isinstance(error, StudyError)
        assert error is None or "resume" in error.hint
    assert study_names(storage_url) == ["s"]


@pytest.mark.parametrize(
    ("reason", "cure", "promised"),
    [
        ("database is locked", "Wait for the process that locks", True),
        ("deadlock detected", "Wait for the process that locks", True),
        ("database or disk is full", "Free disk space", True),
        ("/x/a.log: No space left on device", "Free disk space", True),
        ("/x/a.log: Disk quota exceeded", "Free disk space", True),
        ("database disk image is malformed", "The database is damaged", False),
        ("file is not a database", "The database is damaged", False),
        ("disk I/O error", "Check the disk", False),
        ("attempt to write a readonly database", "can be written", False),
        ("unable to open database file", "can be written", False),
        ('connection to server at "h", port 1 failed: Connection refused', "server runs", True),
        ("server closed the connection unexpectedly", "server runs", True),
        ('password authentication failed for user "me"', "another user or password", False),
        ("no such table: trials", "Use the URL of the database", False),
        ("no such column: trials.x", "storage upgrade --storage sqlite:///a.db", False),
    ],
)
def test_the_cure_fits_the_error(reason: str, cure: str, promised: bool) -> None:
    text = cure_of(reason, "sqlite:///a.db")
    assert cure in text
    assert ("is kept" in text) == promised


def damaged_inside(file: Path) -> None:
    """Overwrite everything after the first page."""
    storage = open_storage(f"sqlite:///{file}", create=True)
    create_study(storage, config("s"))
    backend_of(storage).engine.dispose()  # the last connection moves the log into the file
    size = file.stat().st_size
    with file.open("r+b") as database:
        database.seek(4096)
        database.write(b"\xa5" * (size - 4096))


def without_studies(file: Path) -> None:
    """Create the database of another program."""
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE notes (text)")
    connection.close()


@pytest.mark.parametrize(
    ("damage", "cure"),
    [
        (damaged_inside, "The database is damaged"),
        (lambda file: file.write_bytes(b"my notes" * 500), "The database is damaged"),
        (without_studies, "Use the URL of the database of the study"),
    ],
)
@pytest.mark.parametrize("verb", ["status", "doctor"])
def test_commands_show_a_cure_that_fits(
    tmp_path: Path, damage: Callable[[Path], object], cure: str, verb: str
) -> None:
    file = tmp_path / "a.db"
    damage(file)
    before = file.read_bytes()
    words = (verb, "--storage", f"sqlite:///{file}", "--study-name", "s")
    result = invoke(*words, check=False)
    printed = " ".join((result.stdout + result.stderr).split())
    assert result.returncode == 2
    assert cure in printed
    assert "lost" not in printed
    assert "kept" not in printed
    assert file.read_bytes() == before


def test_a_file_without_tables_is_not_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    """Another `run` has just created it."""
    file = tmp_path / "a.db"
    file.touch()
    assert is_being_created(file)
    create_study(open_storage(f"sqlite:///{file}", create=True), config("s"))
    assert not is_being_created(file)
    with pytest.raises(StudyError, match="exists already"):
        refuse_existing(open_storage(f"sqlite:///{file}"), "s")
