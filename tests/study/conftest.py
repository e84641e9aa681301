"""A smoke study, run once through the command line, and helpers to run others."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from effllava_optuna.study.cli import main

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "studies" / "smoke.toml"


@dataclass(frozen=True)
class Ran:
    """A study that ran to its end."""

    file: Path
    output: str

    def document(self, verb: str = "report") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(cli(verb, self.file, "--json").stdout)
        return found


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def cli(*arguments: object, check: bool = True) -> Done:
    """Run the command line in this process, which has torch imported already."""
    result = CliRunner().invoke(main, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if check and result.exit_code:
        raise AssertionError(f"exit {result.exit_code}\n{result.stdout}\n{result.stderr}")
    return Done(result.exit_code, result.stdout, result.stderr)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "effllava_optuna.study", *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The smoke study, with an export, run by ``run``."""
    file = tmp_path_factory.mktemp("smoke") / "smoke.toml"
    file.write_text(SMOKE.read_text() + '\n[export]\ndirectory = "smoke.pruned"\n')
    return Ran(file, cli("run", file).stdout)


@pytest.fixture
def smoke_file(tmp_path: Path) -> Path:
    """A smoke study that has not begun."""
    return Path(shutil.copy(SMOKE, tmp_path / "smoke.toml"))
