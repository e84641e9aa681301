"""What shells and people at terminals meet: help, completion, loudness, environment."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from effllava_optuna import logging as ours
from effllava_optuna.study.cli import main
from effllava_optuna.study.cli_shell import PROGRAM
from tests.study.conftest import ROOT, Ran, cli, command, environment

HEAVY = ("torch", "transformers", "optuna", "sqlalchemy", "scipy", "numpy", "pydantic", "rich",
         "plotly", "datasets")  # fmt: skip


@pytest.mark.parametrize("verb", sorted(main.commands))
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    assert f"python -m effllava_optuna.study {verb} " in cli(verb, "--help").stdout


def test_help_and_completion_import_nothing_that_takes_time() -> None:
    run = f"""
import sys
from effllava_optuna.study.cli import main
for words in (["--help"], *([verb, "--help"] for verb in main.commands), ["completion", "zsh"]):
    main(words, standalone_mode=False)
    heavy = set({HEAVY!r}) & set(sys.modules)
    assert not heavy, f"{{words}} imported {{heavy}}"
"""
    done = subprocess.run(
        [sys.executable, "-c", run], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_script_of_pyproject_is_the_same_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {PROGRAM: "effllava_optuna.study.cli:main"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_for_the_installed_program(shell: str) -> None:
    script = cli("completion", shell).stdout
    assert PROGRAM in script
    assert f"_EFFLLAVA_OPTUNA_COMPLETE={shell}_complete" in script


def completed(line: str) -> list[str]:
    """Complete the last word of a line, as bash asks."""
    words = line.split(" ")
    told = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    asked = {**told, "_EFFLLAVA_OPTUNA_COMPLETE": "bash_complete"}
    done = CliRunner().invoke(main, [], env=asked, prog_name=PROGRAM)
    assert done.exit_code == 0, done.output
    return [row.partition(",")[2] for row in done.stdout.splitlines() if row]


def test_verbs_and_study_names_are_completed(smoke: Ran) -> None:
    assert {"report", "resume", "recover"} <= set(completed("effllava-optuna re"))
    url = f"sqlite:///{smoke.file.with_suffix('.db')}"
    assert completed(f"effllava-optuna status --storage {url} --study-name ") == ["smoke"]
    assert completed("effllava-optuna status --storage nonsense --study-name ") == []
    assert completed("effllava-optuna status -f ") == ["json", "table"]


def test_json_is_for_programs(smoke: Ran) -> None:
    assert json.loads(cli("check", smoke.file, "--format", "json").stdout)["trials"] == 48
    assert "sites" in json.loads(cli("anatomy", "digits-vlm", "--quick", "-f", "json").stdout)


def test_the_storage_may_come_from_the_environment(
    smoke: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = cli("status", smoke.file).stdout
    monkeypatch.setenv("OPTUNA_STORAGE", f"sqlite:///{smoke.file.with_suffix('.db')}")
    assert cli("status", "--study-name", "smoke").stdout == expected
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:////none.db")
    assert cli("status", smoke.file).stdout == expected
    url = f"sqlite:///{smoke.file.with_suffix('.db')}"
    assert cli("status", "--storage", url, "--study-name", "smoke").stdout == expected
    assert "No study is given" in cli("status", check=False).stderr


def test_how_loud_it_is_may_be_said_before_or_after_the_verb(smoke: Ran) -> None:
    cli("-q", "status", smoke.file)
    assert ours.get_verbosity() == logging.WARNING
    cli("status", smoke.file, "--verbose")
    assert ours.get_verbosity() == logging.DEBUG
    cli("status", smoke.file)
    assert ours.get_verbosity() == logging.INFO
    for words in (("status", smoke.file, "-q", "-v"), ("-q", "status", smoke.file, "-v")):
        done = cli(*words, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("--quiet and --verbose are both given.")


def test_an_error_tells_where_it_comes_from_to_who_wants_to_know(tmp_path: Path) -> None:
    file, log = tmp_path / "none.toml", tmp_path / "log"
    assert len(cli("run", file, "-q", check=False).stderr.splitlines()) == 1
    told = cli("run", file, "-v", check=False).stderr
    assert "Traceback" in told
    assert told.splitlines()[-1] == f"{file}: there is no such file. Give a study file."
    assert cli("run", file, "--log-file", log, check=False).stderr == f"{told.splitlines()[-1]}\n"
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize(
    "more",
    [
        {"COLUMNS": "20"},
        {"TERM": "dumb"},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=str,
)
def test_it_answers_in_any_surroundings(more: dict[str, str], smoke: Ran) -> None:
    for words in (["status", str(smoke.file)], ["--help"], ["run", "none-ü.toml"]):
        done = subprocess.run(
            command(*words), capture_output=True, env=environment() | more, check=False
        )
        assert done.returncode == (2 if "run" in words else 0), done.stderr
        assert b"Traceback" not in done.stderr
    assert os.environ.get("COLUMNS") is None


def test_a_reader_who_leaves_early_is_no_fault(smoke: Ran) -> None:
    words = " ".join(command("report", smoke.file, "-f", "json"))
    told = ["bash", "-c", f"{words} | head -c 10"]
    done = subprocess.run(told, capture_output=True, env=environment(), check=False)
    assert done.stdout.startswith(b"{")
    assert b"Traceback" not in done.stderr


def test_a_finished_study_is_neither_searched_nor_exported_again(smoke: Ran) -> None:
    exported = smoke.file.parent / "smoke.pruned"
    before = {path: path.stat().st_mtime_ns for path in exported.rglob("*")}
    printed = cli("resume", smoke.file).stdout
    assert printed.startswith("The search of 'smoke' is over; nothing is searched again.\n")
    assert f"Its export is in {exported}, whole." in printed
    assert {path: path.stat().st_mtime_ns for path in exported.rglob("*")} == before
