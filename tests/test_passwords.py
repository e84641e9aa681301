"""No output has the password of a database URL."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from optuna.storages import InMemoryStorage

from effllava_optuna.errors import StudyError
from effllava_optuna.logging import get_logger, logging_to_file
from effllava_optuna.passwords import hide_passwords, shown_url
from effllava_optuna.search import workers
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.names import CONFIG
from effllava_optuna.storage.studies import create_study, open_study
from effllava_optuna.study import load_config
from tests.study_fixtures import SMOKE, copy_study, invoke

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "hunter2seven"
NOWHERE = "127.0.0.1:1/name"  # nothing listens on port 1
URLS = [
    f"postgresql+psycopg://me:{SECRET}@{NOWHERE}",
    f"postgresql+psycopg://:{SECRET}@{NOWHERE}",
    f"postgresql+psycopg://me:a%40{SECRET}%2Fb@{NOWHERE}",
    f"postgresql+psycopg://me:a/{SECRET}@{NOWHERE}",
    f"postgresql+psycopg://me:a@{SECRET}@{NOWHERE}",
    f"postgresql+psycopg://me:a {SECRET}@{NOWHERE}",
    f"postgresql+psycopg://me:a'{SECRET}@{NOWHERE}",
    f"postgresql+psycopg://me:{SECRET}@127.0.0.1:port/name",
    f"postgresql+psycopg://me@{NOWHERE}?password={SECRET}",
    f"postgresql+psycopg://me@{NOWHERE}?application_name=x&PassWord=a%20{SECRET}&connect_timeout=2",
    f"postgresql+psycopg://me@{NOWHERE}?sslpassword={SECRET}",
    f"postgresql+psycopg://me@{NOWHERE}?p%61ssword={SECRET}",
    f"postgresql+psycopg://me@{NOWHERE}?password=a;{SECRET}",
    f"postgresql+nodriver://me:{SECRET}@{NOWHERE}",
    f"mysql://me:{SECRET}@{NOWHERE}",
    f"redis://:{SECRET}@{NOWHERE}",
    f"grpc://me:{SECRET}@{NOWHERE}",
    f"journal:////nowhere/a.log?password={SECRET}",
    f"me:{SECRET}@host",
]
VERBS = ["status", "report", "resume", "worker", "dashboard", "doctor", "pick", "export"]


def study_file(directory: Path) -> Path:
    """Write the study file of a study that does not exist."""
    file = directory / "smoke.toml"
    file.write_text(SMOKE.read_text())
    return file


def printed(tmp_path: Path, *words: object) -> str:
    """Return all that a command prints and logs."""
    log = tmp_path / "messages.log"
    result = invoke(*words, "-v", "-v", "--log-file", log, check=False)
    logged = log.read_text(encoding="utf-8") if log.exists() else ""
    return result.stdout + result.stderr + logged


@pytest.mark.parametrize(
    ("verb", "url"), [*(("status", url) for url in URLS), *(("doctor", url) for url in URLS[::3])]
)
def test_no_error_about_a_url_has_its_password(tmp_path: Path, verb: str, url: str) -> None:
    text = printed(tmp_path, verb, "--storage", url, "--study-name", "s")
    assert text
    assert SECRET not in text


@pytest.mark.parametrize("url", URLS[:1] + URLS[8:9])
@pytest.mark.parametrize("verb", VERBS)
def test_no_command_prints_a_password(tmp_path: Path, url: str, verb: str) -> None:
    text = printed(tmp_path, verb, "--storage", url, "--study-name", "s")
    assert "127.0.0.1" in text or verb in ("pick", "export")
    assert SECRET not in text
    mistyped = printed(tmp_path, verb, url, "--study-nam", "s")
    assert SECRET not in mistyped


@pytest.mark.parametrize("url", URLS[::4])
@pytest.mark.parametrize("verb", ["check", "run"])
def test_no_message_about_a_study_file_has_a_password(tmp_path: Path, url: str, verb: str) -> None:
    file = tmp_path / "a.toml"
    table = f"[study]\nstorage = {json.dumps(url)}\nartifacts = 'x'\n"
    file.write_text(table + SMOKE.read_text())
    assert SECRET not in printed(tmp_path, verb, file)
    if verb == "check":
        assert SECRET not in printed(tmp_path, verb, file, "-f", "json")
        return
    assert SECRET not in printed(
        tmp_path, verb, study_file(tmp_path), "--set", f"study.storage={url}"
    )


@pytest.mark.parametrize("artifacts", [f"s3://key:{SECRET}@bucket/x", f"https://me:{SECRET}@host"])
def test_no_message_about_artifacts_has_a_password(tmp_path: Path, artifacts: str) -> None:
    changed = printed(
        tmp_path, "run", study_file(tmp_path), "--set", f"study.artifacts={artifacts}"
    )
    assert "study.artifacts" in changed
    assert SECRET not in changed


def test_a_study_does_not_store_a_password(tmp_path: Path) -> None:
    """The dashboard, reports and copies show what a study stores."""
    config = load_config(study_file(tmp_path), (f"study.storage={URLS[0]}", "study.artifacts=x"))
    study = create_study(InMemoryStorage(), config)
    assert SECRET not in json.dumps(study.user_attrs)
    assert study.user_attrs[CONFIG]["study"]["storage"] == URLS[0].replace(SECRET, "***")


def test_a_report_of_a_study_that_has_stored_a_password_does_not_show_it(
    calibrated: Path, tmp_path: Path
) -> None:
    file = copy_study(calibrated, tmp_path / "study")
    url = f"sqlite:///{file.with_suffix('.db')}"
    study = open_study(open_storage(url), "smoke")
    document = study.user_attrs[CONFIG]
    document["study"]["storage"] = URLS[0]
    study.set_user_attr(CONFIG, document)
    page = tmp_path / "report.html"
    words = ("report", "--storage", url, "--study-name", "smoke")
    text = printed(tmp_path, *words, "-f", "json") + printed(tmp_path, *words, "--out", page)
    assert SECRET not in text + page.read_text()


def test_a_worker_process_gets_the_url_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user of the machine can read the arguments of a process."""
    started: list[tuple[list[str], dict[str, str]]] = []
    popen = subprocess.Popen

    def recorded(command: list[str], **options: object) -> object:
        environment = options.pop("env")
        assert isinstance(environment, dict)
        started.append((command, environment))
        return popen([sys.executable, "-c", ""])

    monkeypatch.setattr(subprocess, "Popen", recorded)
    with workers.running_workers(URLS[0], "s", ["cpu"]):
        pass
    [(command, environment)] = started
    assert SECRET not in " ".join(command)
    assert environment["OPTUNA_STORAGE"] == URLS[0]


def test_messages_are_logged_without_passwords(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    with logging_to_file(file):
        get_logger("a").error(f"cannot reach {URLS[0]}", exc_info=OSError(f"no {URLS[8]}"))
    logged = file.read_text()
    assert "cannot reach" in logged
    assert SECRET not in logged
    assert SECRET not in str(StudyError(f"{URLS[0]} is wrong.", hint=f"Not {URLS[8]}."))


@pytest.mark.parametrize(
    "text",
    [
        f"host=127.0.0.1 user=me password={SECRET} dbname=x",
        f"host=h password = 'a {SECRET}' dbname=x",
        f"PGPASSWORD={SECRET}",
        f"MYSQL_PWD={SECRET}; PGUSER=me",
        f"{{'password': '{SECRET}', 'host': 'h'}}",
        f'{{"sslpassword": "a\\"{SECRET}"}}',
        f"connect(host='h', password='{SECRET}')",
        f"aws_secret_access_key = {SECRET}",
        f"postgresql://me@h/n?sslkey=engine:{SECRET}",
        f"postgresql://me@h/n?options=-c%20app.password%3D{SECRET}",
        f"mssql+pyodbc:///?odbc_connect=DRIVER%3D%7Bx%7D%3BUID%3Dme%3BPWD%3D{SECRET}",
        f"mssql+pyodbc:///?odbc_connect=DRIVER={{x}};UID=me;PWD={{a {SECRET}}}",
        f"https://account.blob.core.windows.net/c?sv=1&sig={SECRET}",
        f"https://b.s3.amazonaws.com/x?X-Amz-Signature={SECRET}",
        f"https://host/page#access_token={SECRET}",
    ],
)
def test_keywords_fields_and_signatures_are_hidden_too(text: str) -> None:
    assert SECRET not in hide_passwords(f"cannot connect: {text}")
    assert SECRET not in shown_url(text)


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////data/a:b@c.db",
        "postgresql://me@host:5432/name",
        "see https://host:8080/page, or ask me@host",
        "passfile=/home/me/.pgpass",
        "the password is wrong",
        "a@b.c: no token = none",
        "key=value&other=1",
        "max_new_tokens=3, pad_token=0 of https://host/page#part",
        "password authentication failed for user me",
        "design=a&assigned=b",
    ],
)
def test_other_texts_are_unchanged(text: str) -> None:
    assert hide_passwords(text) == text


def test_the_rest_of_a_url_is_shown() -> None:
    url = f"postgresql+psycopg://me:{quote('p:@/ s')}@host:5432/name?sslmode=require"
    assert hide_passwords(f"({url}).") == (
        "(postgresql+psycopg://me:***@host:5432/name?sslmode=require)."
    )
    url = f"postgresql://me@host/name?password={SECRET}&sslmode=require"
    assert hide_passwords(f"'{url}'") == "'postgresql://me@host/name?password=***&sslmode=require'"
