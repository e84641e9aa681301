"""The program as a whole: entry points, help, completion, verbosity, errors and environment."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from effllava_optuna.cli import PROGRAM
from effllava_optuna.cli.program import main
from effllava_optuna.logging import get_verbosity
from tests.study_fixtures import (
    ROOT,
    FinishedStudy,
    command_line,
    invoke,
    status_of,
    subprocess_environment,
)

SLOW_IMPORTS = ("torch", "transformers", "optuna", "sqlalchemy", "scipy", "numpy", "pydantic",
                "rich", "plotly", "datasets")  # fmt: skip


def project() -> dict[str, Any]:
    document: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return document


def run_python(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        env=subprocess_environment() | environment,
        check=False,
    )


@pytest.mark.parametrize("verb", sorted(main.commands))
def test_every_command_has_help_with_an_example(verb: str) -> None:
    assert f"effllava-optuna {verb} " in invoke(verb, "--help").stdout


def test_help_and_completion_import_no_slow_package() -> None:
    done = run_python(f"""
import sys
from effllava_optuna.cli.program import main
for words in (["--help"], *([verb, "--help"] for verb in main.commands), ["completion", "zsh"]):
    main(words, standalone_mode=False)
    slow = set({SLOW_IMPORTS!r}) & set(sys.modules)
    assert not slow, f"{{words}} imported {{slow}}"
""")
    assert done.returncode == 0, done.stderr


def test_commands_that_only_read_do_not_import_torch(smoke: FinishedStudy) -> None:
    done = run_python(f"""
import sys
from effllava_optuna.cli.program import main
main(["check", {str(smoke.file)!r}], standalone_mode=False)
for words in (["status"], ["pick"], ["report", "-f", "json"]):
    words += ["--storage", {smoke.url!r}, "--study-name", "smoke"]
    main(words, standalone_mode=False)
    assert "torch" not in sys.modules, f"{{words}} imported torch"
""")
    assert done.returncode == 0, done.stderr


def test_the_entry_points_of_pyproject_exist() -> None:
    scripts, plugins = project()["scripts"], project()["entry-points"]["lmms_eval.models"]
    assert EntryPoint(PROGRAM, scripts[PROGRAM], "").load() is main
    assert callable(EntryPoint("effllava", plugins["effllava"], "").load())


def test_the_installed_program_runs_in_the_c_locale(smoke: FinishedStudy) -> None:
    module, _, function = project()["scripts"][PROGRAM].partition(":")
    code = f"from {module} import {function} as main; main()"
    locale = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words, returncode in ((["status", str(smoke.file)], 0), (["run", "none-ü.toml"], 2)):
        done = run_python(code, *words, **locale)
        assert done.returncode == returncode, done.stderr
        assert "Traceback" not in done.stderr


def test_python_m_ends_quietly_if_its_output_is_closed(smoke: FinishedStudy) -> None:
    words = " ".join(command_line("report", smoke.file, "-f", "json"))
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -c 10"],
        capture_output=True, env=subprocess_environment(), check=False,
    )  # fmt: skip
    assert done.stdout.startswith(b"{")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("variable", ["COLUMNS=20", "TERM=dumb"])
def test_commands_work_on_any_terminal(
    variable: str, smoke: FinishedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*variable.split("="))
    assert invoke("status", smoke.file).stdout
    assert invoke("--help").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_for_the_installed_program(shell: str) -> None:
    script = invoke("completion", shell).stdout
    assert PROGRAM in script
    assert f"_EFFLLAVA_OPTUNA_COMPLETE={shell}_complete" in script


def completions(line: str) -> list[str]:
    """Return the completions of the last word of a command line, as bash requests them."""
    variables = {
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
        "_EFFLLAVA_OPTUNA_COMPLETE": "bash_complete",
    }
    done = CliRunner().invoke(main, [], env=variables, prog_name=PROGRAM)
    assert done.exit_code == 0, done.output
    return [row.partition(",")[2] for row in done.stdout.splitlines() if row]


def test_commands_and_study_names_are_completed(smoke: FinishedStudy) -> None:
    assert {"report", "resume", "recover"} <= set(completions("effllava-optuna re"))
    assert completions(f"effllava-optuna status --storage {smoke.url} --study-name ") == ["smoke"]
    assert completions("effllava-optuna status --storage nonsense --study-name ") == []
    assert completions("effllava-optuna status -f ") == ["json", "table"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["anatomy", "digits-vlm"], "No such command 'anatomy'. Did you mean 'inspect'? See: "),
        (["resme", "a.toml"], "No such command 'resme'. Did you mean 'resume'? See: "),
        ([], "No command is given. See: effllava-optuna --help"),
        (["run"], "Missing argument 'FILE'. See: effllava-optuna run --help"),
    ],
)
def test_a_wrong_command_line_points_to_the_help(words: list[str], message: str) -> None:
    done = invoke(*words, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


def test_json_output_is_parsed_by_programs(smoke: FinishedStudy) -> None:
    assert json.loads(invoke("check", smoke.file, "--format", "json").stdout)["trials"] == 48
    parts = json.loads(invoke("inspect", "digits-vlm", "--quick", "-f", "json").stdout)
    assert "components" in parts


def test_the_storage_may_come_from_the_environment(
    smoke: FinishedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = status_of(smoke.file)
    monkeypatch.setenv("OPTUNA_STORAGE", smoke.url)
    assert status_of("--study-name", "smoke") == expected
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:////none.db")
    assert status_of(smoke.file) == expected
    assert status_of("--storage", smoke.url, "--study-name", "smoke") == expected
    assert "No study is given" in invoke("status", check=False).stderr


def test_verbosity_is_set_before_or_after_the_command(smoke: FinishedStudy) -> None:
    invoke("-q", "status", smoke.file)
    assert get_verbosity() == logging.WARNING
    invoke("status", smoke.file, "--verbose")
    assert get_verbosity() == logging.DEBUG
    invoke("status", smoke.file)
    assert get_verbosity() == logging.INFO
    for words in (("status", smoke.file, "-q", "-v"), ("-q", "status", smoke.file, "-v")):
        done = invoke(*words, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("--quiet and --verbose are both given.")


def test_the_traceback_of_an_error_is_shown_on_request(tmp_path: Path) -> None:
    file, log = tmp_path / "none.toml", tmp_path / "log"
    assert len(invoke("run", file, "-q", check=False).stderr.splitlines()) == 1
    verbose = invoke("run", file, "-v", check=False).stderr
    assert "Traceback" in verbose
    message = f"{file}: there is no such file. Use the path of a study file."
    assert verbose.splitlines()[-1] == message
    assert invoke("run", file, "--log-file", log, check=False).stderr == f"{message}\n"
    assert "Traceback" in log.read_text()
