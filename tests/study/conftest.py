"""A smoke study, run once through the command line, and helpers to run others."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from optuna.storages import InMemoryStorage

from effllava_optuna.study import calibrating, read_spec, storage
from effllava_optuna.study.artifacts import Folder, Vault
from effllava_optuna.study.cli import main
from effllava_optuna.study.evolution import Epochs, silent
from effllava_optuna.study.loop import begun
from effllava_optuna.study.spec import StudySpec
from effllava_optuna.study.workbench import Workbench
from effllava_optuna.surgery import Loaded
from effllava_optuna.tasks import Digits

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "studies" / "smoke.toml"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["effllava_optuna.study.loop", "transformers.models.llava.modeling_llava"]
)


# A study of a tiny random model: nothing it finds means anything, and it takes seconds.
TINY = """
[model]
path = "{checkpoint}"
[task]
name = "digits"
proxy = 16
validation = 8
test = 8
[pruning]
shares = [0.1, 0.3, 0.5, 0.7, 1.0]
[latency]
batch = 16
repeats = 3
seconds = 0
checks = 4
[search]
epochs = 2
generations = 2
population = 6
kept_share = 0.5
[projector]
parts = 2
steps = 2
every = 1
[report]
finalists = 2
"""
TINY_TRIALS = 2 * 2 * 6


class Opener:
    """Opens calibrated studies of a tiny model in memory; what they calibrate, they share.

    Args:
        loaded: The model.
        task: The samples.
        place: For artifacts.
        search: The ``[search]`` of all of them.
    """

    def __init__(self, loaded: Loaded, task: Digits, place: Path, **search: Any) -> None:
        self.loaded, self.task, self.place, self.search = loaded, task, place, search
        with Workbench(self.spec(), loaded, task) as bench:
            self.bundle = calibrating.calibrate(bench, silent)

    def spec(self, **search: Any) -> StudySpec:
        """Give the spec of a study whose ``[search]`` has these keys, too."""
        return StudySpec.of(
            {
                "study": {"name": "tiny"},
                "model": {"path": "tiny", "device": "cpu"},
                "task": {"name": "digits", "proxy": self.task.proxy},
                "latency": {"batch": 16, "repeats": 3, "seconds": 0.0, "checks": 4},
                "search": self.search | search,
                "projector": {"parts": 2, "steps": 0},
            }
        )

    def __call__(self, **search: Any) -> Epochs:
        """Open a study whose ``[search]`` has these keys, too."""
        spec = self.spec(**search)
        study = storage.create_study(InMemoryStorage(), spec)
        bench = Workbench(spec, self.loaded, self.task)
        epochs = Epochs(study, bench, Vault(Folder(self.place)))
        epochs.ledger.publish(0, lambda: epochs.publication(self.bundle))
        epochs.open()
        study.sampler = epochs.sampler
        return epochs


@dataclass(frozen=True)
class Ran:
    """A study that ran to its end."""

    file: Path
    output: str

    def document(self, verb: str = "report") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(cli(verb, self.file, "-f", "json").stdout)
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


def _call(function: Callable[..., object], arguments: list[Any], output: Path) -> None:
    with output.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    # Whoever started pytest in the background made it ignore SIGINT, and so its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    function(*arguments)


def forked(
    function: Callable[..., object], *arguments: Any, output: Path | str = os.devnull
) -> BaseProcess:
    """Call a function in a process that is forked from one that has imported torch already."""
    process = FORKS.Process(target=_call, args=(function, list(arguments), Path(output)))
    process.start()
    return process


def _main(words: list[str]) -> None:
    main(words)


def started(*arguments: object, output: Path | str = os.devnull) -> BaseProcess:
    """Start the command line as `forked` does."""
    return forked(_main, [str(word) for word in arguments], output=output)


def environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def clone(file: Path, where: Path) -> Path:
    """Copy a study: its file, database and artifacts."""
    where.mkdir()
    with sqlite3.connect(file.with_suffix(".db")) as source:
        target = sqlite3.connect(where / file.with_suffix(".db").name)
        source.backup(target)
        target.close()
    shutil.copytree(file.with_suffix(".artifacts"), where / file.with_suffix(".artifacts").name)
    return Path(shutil.copy(file, where / file.name))


def calibrate(file: Path) -> Path:
    """Begin the study of ``file``: its bundle is published, and no trial measured."""
    with begun(read_spec(file), f"sqlite:///{file.with_suffix('.db')}"):
        pass
    return file


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke study, with an export, its bundle published and no trial measured."""
    file = tmp_path_factory.mktemp("calibrated") / "smoke.toml"
    file.write_text(SMOKE.read_text() + '\n[export]\ndirectory = "smoke.pruned"\n')
    return calibrate(file)


@pytest.fixture(scope="session")
def smoke(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The calibrated study, brought to its end without an interruption."""
    file = clone(calibrated, tmp_path_factory.mktemp("smoke") / "clone")
    return Ran(file, cli("resume", file).stdout)


def write_tiny(checkpoint: Path, where: Path) -> Path:
    """Write the study file of the tiny model."""
    file = where / "tiny.toml"
    file.write_text(TINY.format(checkpoint=checkpoint))
    return file
