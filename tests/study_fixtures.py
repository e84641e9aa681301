"""A finished smoke study, and helpers to run the command line and other studies."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from filelock import FileLock
from optuna.storages import InMemoryStorage

from effllava_optuna.calibration.calibration_run import calibrate
from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.calibration.stage_callback import silent
from effllava_optuna.cli.program import main
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.samplers import this_process
from effllava_optuna.search.runner import begin
from effllava_optuna.search.session import SearchSession, calibration_publication, open_session
from effllava_optuna.storage.artifact_store import ArtifactStore, DirectoryArtifactStore
from effllava_optuna.storage.control_study import open_control_study
from effllava_optuna.storage.studies import create_study
from effllava_optuna.study import load_config
from effllava_optuna.surgery import LoadedModel
from effllava_optuna.tasks import Digits
from tests.fixed_latency import fix_latency

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "studies" / "smoke.toml"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["effllava_optuna.search.runner", "transformers.models.llava.modeling_llava"]
)


# A study of a tiny random model: it takes seconds, and its results have no meaning.
TINY = """
[model]
path = "{checkpoint}"
[task]
name = "digits"
proxy = 16
validation = 8
test = 8
[pruning]
width_ratios = [0.1, 0.3, 0.5, 0.7, 1.0]
[latency]
batch = 16
repeats = 3
seconds = 0
checks = 4
[search]
epochs = 2
generations = 2
population = 6
keep_ratio = 0.5
[projector]
parts = 2
steps = 2
every = 1
[report]
finalists = 2
"""
# A study of rows in a file beside it.
ROWS_STUDY = """
[model]
path = "digits-vlm"
[task]
name = "qa"
data = "mine.jsonl"
proxy = 8
validation = 4
test = 4
"""
TINY_TRIALS = 2 * 2 * 6


class StudyFactory:
    """Opens studies of a tiny model in memory, which share one calibration.

    Args:
        loaded: The model.
        task: The samples.
        directory: Directory of the artifacts.
        pruning: Keys of ``[pruning]`` in all studies.
        search: Keys of ``[search]`` in all studies.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        task: Digits,
        directory: Path,
        pruning: Mapping[str, Any] | None = None,
        **search: Any,
    ) -> None:
        self.loaded, self.task, self.directory, self.search = loaded, task, directory, search
        self.pruning = dict(pruning or {})
        self.latency: dict[str, Any] = {}  # more keys of ``[latency]``
        self.finalists = 8
        with study_inputs(self.config(), loaded, task) as inputs:
            self.calibration = calibrate(inputs, inputs.stopwatch(), silent)

    def config(self, **search: Any) -> StudyConfig:
        """Return a study file with more keys of ``[search]``."""
        return StudyConfig.of(
            {
                "study": {"name": "tiny"},
                "model": {"path": "tiny", "device": "cpu"},
                "task": {"name": "digits", "proxy": self.task.proxy},
                "pruning": self.pruning,
                "latency": {"batch": 16, "repeats": 3, "seconds": 0.0, "checks": 4} | self.latency,
                "search": self.search | search,
                "projector": {"parts": 2, "steps": 0},
                "report": {"finalists": self.finalists},
            }
        )

    def __call__(self, **search: Any) -> SearchSession:
        """Open a study with more keys of ``[search]``."""
        config = self.config(**search)
        study = create_study(InMemoryStorage(), config)
        store = ArtifactStore(DirectoryArtifactStore(self.directory))
        control = open_control_study(study)
        control.publish_once(0, lambda: calibration_publication(self.calibration, store))
        stack = ExitStack()
        inputs = stack.enter_context(study_inputs(config, self.loaded, self.task))
        session = open_session(study, inputs, store)
        session.resources.push(stack)
        return session


def status_of(*arguments: object) -> list[str]:
    """Return the lines of ``status`` of a finished study, but for the command that names it."""
    *lines, command = invoke("status", *arguments).stdout.splitlines()
    assert command.startswith("Results: effllava-optuna report ")
    return lines


@dataclass(frozen=True)
class FinishedStudy:
    """A finished study: its study file, and what the command line printed."""

    file: Path
    output: str

    @property
    def url(self) -> str:
        """Return the URL of the database."""
        return url_of_study(self.file)

    def document(self, verb: str = "report") -> dict[str, Any]:
        """Return the JSON output of a command."""
        document: dict[str, Any] = json.loads(invoke(verb, self.file, "-f", "json").stdout)
        return document


@dataclass(frozen=True)
class CommandResult:
    """The output and the exit code of a command."""

    returncode: int
    stdout: str
    stderr: str


def invoke(*arguments: object, check: bool = True) -> CommandResult:
    """Run the command line in this process, which has torch imported already."""
    result = CliRunner().invoke(main, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if check and result.exit_code:
        raise AssertionError(f"exit {result.exit_code}\n{result.stdout}\n{result.stderr}")
    return CommandResult(result.exit_code, result.stdout, result.stderr)


def command_line(*arguments: object) -> list[str]:
    """Return the command line in a new process, for `subprocess`."""
    return [sys.executable, "-m", "effllava_optuna.study", *map(str, arguments)]


def _call(function: Callable[..., object], arguments: list[Any], output: Path) -> None:
    with output.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    fix_latency(pytest.MonkeyPatch())  # a process from the fork server has no fixtures
    # A shell that runs pytest in the background makes it and its children ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    function(*arguments)


def start_process(
    function: Callable[..., object], *arguments: Any, output: Path | str = os.devnull
) -> BaseProcess:
    """Call a function in a process that is forked from one that has imported torch."""
    process = FORKS.Process(target=_call, args=(function, list(arguments), Path(output)))
    process.start()
    return process


def _main(words: list[str]) -> None:
    main(words)


def start_command(*arguments: object, output: Path | str = os.devnull) -> BaseProcess:
    """Run the command line in a process of `start_process`."""
    return start_process(_main, [str(word) for word in arguments], output=output)


def subprocess_environment() -> dict[str, str]:
    """Return an environment in which subprocesses import this checkout and stay offline."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def ended_process() -> str:
    """Return the name of a process of this machine that has ended: no process has its number."""
    host, _, *rest = this_process().rsplit(":", 4)
    return ":".join([host, "99999999", *rest])


def url_of_study(file: Path) -> str:
    """Return the URL of the database beside a study file."""
    return f"sqlite:///{file.with_suffix('.db')}"


def copy_study(file: Path, directory: Path) -> Path:
    """Copy a study file, its database and its artifacts to a new directory."""
    directory.mkdir()
    # Not by shutil: a process loses its SQLite locks when it closes the file elsewhere.
    with sqlite3.connect(file.with_suffix(".db")) as source:
        target = sqlite3.connect(directory / file.with_suffix(".db").name)
        source.backup(target)
        target.close()
    artifacts = file.with_suffix(".artifacts")
    shutil.copytree(artifacts, directory / artifacts.name)
    return Path(shutil.copy(file, directory / file.name))


def begin_study(file: Path) -> Path:
    """Begin the study of ``file``: its calibration is published, and no trial measured."""
    with begin(load_config(file), url_of_study(file)):
        pass
    return file


def shared_directory(
    tmp_path_factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]
) -> Path:
    """Return a directory that one of the test processes fills, for all of them.

    Tests must not write into it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # what all processes of a run have in common
    directory, finished = root / f"shared-{name}", root / f"shared-{name}.finished"
    with FileLock(root / f"shared-{name}.lock"):
        if not finished.exists():
            directory.mkdir()
            fill(directory)
            finished.touch()
    return directory


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke study with an export; its calibration is published, and no trial measured."""

    def begin(directory: Path) -> None:
        file = directory / "smoke.toml"
        file.write_text(SMOKE.read_text() + '\n[export]\ndirectory = "smoke.pruned"\n')
        begin_study(file)

    return shared_directory(tmp_path_factory, "calibrated", begin) / "smoke.toml"


@pytest.fixture(scope="session")
def smoke(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedStudy:
    """The smoke study, finished without an interruption."""

    def finish(directory: Path) -> None:
        file = copy_study(calibrated, directory / "study")
        (directory / "output").write_text(invoke("resume", file).stdout)

    directory = shared_directory(tmp_path_factory, "smoke", finish)
    return FinishedStudy(directory / "study" / "smoke.toml", (directory / "output").read_text())


def write_tiny(checkpoint: Path, directory: Path) -> Path:
    """Write the study file of a tiny model."""
    file = directory / "tiny.toml"
    file.write_text(TINY.format(checkpoint=checkpoint))
    return file
