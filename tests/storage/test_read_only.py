"""A study in a read-only place can be looked at, and nothing else (optuna PR 5103)."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.util import setup_testing_defaults

import optuna
import pytest

from effllava_optuna.dashboard.app import application
from effllava_optuna.errors import StudyError
from effllava_optuna.storage.backends.read_only import ReadOnlySqlite, _copied
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.location import locate
from effllava_optuna.storage.storage_internals import storage_is_read_only
from effllava_optuna.storage.studies import open_study
from tests.read_only import read_only
from tests.study_fixtures import FinishedStudy, copy_study, invoke, status_of, write_tiny

if TYPE_CHECKING:
    from collections.abc import Iterator

SQLITE = ("rollback", "write-ahead", "write-ahead with its log", "write-ahead with both files",
          "rollback after a crash")  # fmt: skip
LATE = "written last"


def prepare(database: Path, kind: str) -> None:
    """Bring a database into a state in which a study may be archived; ``LATE`` is committed."""
    mode = "DELETE" if kind.startswith("rollback") else "WAL"
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute(f"PRAGMA journal_mode={mode}")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (study,) = connection.execute(
        "select study_id from studies where study_name = 'smoke'"
    ).fetchone()
    connection.execute(
        "insert into study_user_attributes (study_id, key, value_json) values (?, ?, ?)",
        (study, LATE, json.dumps(1)),
    )
    if kind == "rollback after a crash":
        connection.execute("PRAGMA cache_size=1")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("update trial_user_attributes set value_json = 'lost'")
        connection.execute("update study_user_attributes set value_json = 'lost'")
    kept = {"write-ahead with its log": ("-wal",), "write-ahead with both files": ("-wal", "-shm"),
            "rollback after a crash": ("-journal",)}.get(kind, ())  # fmt: skip
    saved = database.with_name("saved")
    saved.mkdir()
    for suffix in ("", *kept):
        shutil.copyfile(f"{database}{suffix}", saved / f"{database.name}{suffix}")
    if kept:
        assert (saved / f"{database.name}{kept[0]}").stat().st_size > 0
        connection.close()
        for file in database.parent.glob(f"{database.name}*"):
            file.unlink()
        for file in saved.iterdir():
            file.rename(database.with_name(file.name))
    else:
        connection.close()
    shutil.rmtree(saved)


@pytest.fixture(params=[*SQLITE, "journal"])
def archived(
    request: pytest.FixtureRequest, smoke: FinishedStudy, tmp_path: Path
) -> Iterator[tuple[Path, str]]:
    """A finished study in a read-only directory, and the URL of its storage."""
    file = copy_study(smoke.file, tmp_path / "archive")
    database = file.with_suffix(".db")
    url = f"sqlite:///{database}"
    if request.param == "journal":
        url = f"journal:///{database.with_suffix('.log')}"
        target = open_storage(url, create=True)
        for name in optuna.get_all_study_names(f"sqlite:///{database}"):
            optuna.copy_study(
                from_study_name=name,
                from_storage=f"sqlite:///{database}",
                to_storage=target,
                to_study_name=name,
            )
        open_study(target, "smoke").set_user_attr(LATE, 1)
        database.unlink()
        file.write_text(f'[study]\nstorage = "{url}"\n{file.read_text()}')
    else:
        prepare(database, request.param)
    with read_only(file.parent):
        yield file, url


def test_every_verb_that_reads_works_in_a_read_only_place(
    archived: tuple[Path, str], smoke: FinishedStudy, tmp_path: Path
) -> None:
    file, url = archived
    before = {path.name for path in file.parent.iterdir()}
    study = open_study(open_storage(url), "smoke")
    assert study.user_attrs[LATE] == 1
    assert storage_is_read_only(study._storage)
    assert status_of(file) == status_of(smoke.file)
    named = ("--storage", url, "--study-name", "smoke")
    assert invoke("pick", *named, "-f", "json").stdout == invoke("pick", smoke.file, "-f",
                                                                 "json").stdout  # fmt: skip
    reported = invoke("report", file)
    assert "(chosen)" in reported.stdout
    page = file.with_suffix(".html")
    assert reported.stderr == f"No page is written: {page} is in a read-only place. Use --out.\n"
    assert invoke("report", file, "--out", tmp_path / "page.html").stderr == ""
    assert (tmp_path / "page.html").is_file()
    checks = json.loads(invoke("doctor", file, "-f", "json").stdout)["findings"]
    storage = next(check for check in checks if check["check"] == "storage")
    assert storage["state"] == "warning"
    assert "read-only" in storage["detail"]
    assert not [check for check in checks if check["state"] == "fault"]
    assert invoke("check", file).returncode == 0
    served = application(study, url, locate(url, "smoke").config_of(study))
    environ: dict[str, object] = {"PATH_INFO": "/api/studies"}
    setup_testing_defaults(environ)
    statuses: list[str] = []
    body = b"".join(served(environ, lambda status, *_: statuses.append(status)))
    assert statuses[0].startswith("200")
    assert b"smoke" in body
    assert {path.name for path in file.parent.iterdir()} == before


def test_verbs_that_write_into_a_read_only_place_say_what_to_do(
    archived: tuple[Path, str],
) -> None:
    file, url = archived
    database = url.partition(":///")[2]
    for words in (
        ("resume", file),
        ("worker", file),
        ("doctor", file, "--repair"),
        ("evaluate", file, "--model", "dense"),
        ("export", file),
        ("recover", file, "--out", file.parent / "recovered"),
    ):
        done = invoke(*words, check=False)
        assert done.returncode == (0 if words[-1] == "--repair" else 2), words
        if words[0] in ("resume", "worker"):
            assert done.stderr.startswith(f"{database} cannot be written: ")
            assert "Copy the study and its artifacts" in done.stderr
        elif done.returncode:
            assert "cannot be written: " in done.stderr
            assert done.stderr.rstrip().endswith(("Use another --out.", "Choose another place."))
        assert done.stderr.count("\n") <= 1
    study = open_study(open_storage(url), "smoke")
    writes = (
        lambda: study.set_user_attr("a", 1),
        lambda: study.enqueue_trial({}),
        lambda: optuna.create_study(storage=study._storage, study_name="b"),
    )
    for write in writes:
        with pytest.raises(StudyError, match="cannot be written: the file or its directory"):
            write()


def test_a_study_is_not_begun_where_it_cannot_be_stored(checkpoint: Path, tmp_path: Path) -> None:
    place, work = tmp_path / "place", tmp_path / "work"
    for directory in (place, work):
        directory.mkdir()
    file = write_tiny(checkpoint, place)
    elsewhere = f'[study]\nstorage = "sqlite:///{work}/a.db"\n'
    exported = place / "exported.toml"
    exported.write_text(f'{elsewhere}{file.read_text()}[export]\ndirectory = "small"\n')
    tensors = place / "tensors.toml"
    tensors.write_text(f'{elsewhere}artifacts = "t"\n{file.read_text()}')
    missing = work / "missing.toml"
    missing.write_text(f'[study]\nstorage = "sqlite:///none/a.db"\n{file.read_text()}')
    with read_only(place):
        for path, message in (
            (file, f"{place}/tiny.db cannot be written"),
            (exported, "export.directory: "),
            (tensors, "study.artifacts: "),
            (missing, "there is no directory"),
        ):
            for verb in ("check", "run"):
                done = invoke(verb, path, check=False)
                assert done.returncode == 2
                assert message in done.stderr
                assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in work.iterdir()) == ["missing.toml"]


@pytest.mark.families
def test_a_policy_is_exported_and_evaluated_from_a_read_only_place(
    smoke: FinishedStudy, tmp_path: Path
) -> None:
    file = copy_study(smoke.file, tmp_path / "archive")
    prepare(file.with_suffix(".db"), "write-ahead with its log")
    with read_only(file.parent):
        invoke("export", file, "--out", tmp_path / "small")
        assert (tmp_path / "small" / "model.safetensors").is_file()
        words = ("evaluate", file, "--limit", 4, "--letters", "--out", tmp_path / "a.jsonl")
        assert invoke(*words).stdout


def test_a_damaged_database_in_a_read_only_place_is_named(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "a.db").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    (place / "empty.db").touch()
    with read_only(place):
        for name in ("a.db", "empty.db"):
            with pytest.raises(StudyError, match=f"{name}: cannot be "):
                open_storage(f"sqlite:///{place / name}")


def test_a_copy_is_removed_and_the_original_untouched(
    smoke: FinishedStudy, tmp_path: Path
) -> None:
    file = copy_study(smoke.file, tmp_path / "archive")
    database = file.with_suffix(".db")
    prepare(database, "rollback after a crash")
    before = {path.name: path.read_bytes() for path in file.parent.glob("smoke.db*")}
    with read_only(file.parent):
        source = ReadOnlySqlite(database)
        connection = source.connect()
        assert connection.execute("select count(*) from studies").fetchone() == (2,)
        connection.close()
    assert {path.name: path.read_bytes() for path in file.parent.glob("smoke.db*")} == before


def test_a_link_to_a_database_is_copied_with_the_logs_beside_its_target(tmp_path: Path) -> None:
    archive, elsewhere, scratch = (tmp_path / name for name in ("archive", "elsewhere", "scratch"))
    for directory in (archive, elsewhere, scratch):
        directory.mkdir()
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("create table t (x)")
        connection.execute("insert into t values (1)")
        for suffix in ("", "-wal"):  # as a process leaves them that is killed
            shutil.copyfile(f"{tmp_path / 'a.db'}{suffix}", f"{archive / 'a.db'}{suffix}")
    (elsewhere / "b.db").symlink_to(archive / "a.db")
    copy = _copied(elsewhere / "b.db", scratch)
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("select x from t").fetchall() == [(1,)]
