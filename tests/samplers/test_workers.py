"""Threads, processes and killed processes on one study, in every storage."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from effllava_optuna.samplers import effective_trials, slot_of
from effllava_optuna.samplers._slots import finished_slots
from tests.samplers import worker
from tests.samplers.toy import DIRECTIONS, digest, objective_of, sampler_of
from tests.samplers.worker import POPULATION, SPACE, study_at, work

SLOTS = 3 * POPULATION
WITH_PROCESSES = pytest.mark.parametrize(
    "storage_url",
    [
        "sqlite",
        pytest.param("journal", marks=pytest.mark.kill),
        pytest.param("postgresql", marks=pytest.mark.servers),
    ],
    indirect=True,
)


def memory_study() -> optuna.Study:
    sampler = sampler_of(SPACE, population_size=POPULATION)
    return optuna.create_study(directions=DIRECTIONS, sampler=sampler)


@pytest.fixture(scope="module")
def expected() -> str:
    study = memory_study()
    study.optimize(objective_of(SPACE), n_trials=SLOTS)
    return digest(study)


@contextmanager
def process(
    url: str, scratch: Path, n_trials: int, kill_at: int = 0
) -> Iterator[subprocess.Popen[bytes]]:
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-m", worker.__name__, url, str(scratch), str(n_trials), str(kill_at)]
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path}) as child:
        try:
            yield child
        finally:
            child.kill()


def complete(study: optuna.Study) -> None:
    """Measure the missing slots; the last trials of a worker may have failed as duplicates."""
    while missing := SLOTS - len(finished_slots(study.trials, 0)):
        study.optimize(objective_of(SPACE), n_trials=missing)


def check(study: optuna.Study, expected: str) -> None:
    """Check that every slot was measured once and that no trial is unfinished."""
    measured = Counter(slot_of(t) for t in study.trials if t.state == TrialState.COMPLETE)
    assert set(measured) == finished_slots(study.trials, 0)
    assert set(measured.values()) == {1}
    assert {t.state for t in effective_trials(study.trials).values()} == {TrialState.COMPLETE}
    assert not [t for t in study.trials if not t.state.is_finished()]
    assert digest(study) == expected


@pytest.mark.parametrize("n_jobs", [2, 3])
def test_threads_measure_every_slot_once(expected: str, n_jobs: int) -> None:
    study = memory_study()
    study.optimize(objective_of(SPACE), n_trials=SLOTS, n_jobs=n_jobs)
    complete(study)
    check(study, expected)


@pytest.mark.kill
@WITH_PROCESSES
def test_processes_measure_every_slot_once(
    expected: str, storage_url: str, tmp_path: Path
) -> None:
    study = study_at(storage_url)
    with process(storage_url, tmp_path, SLOTS // 2) as child:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        n_own = len(work(storage_url, SLOTS // 2))
        assert child.wait(timeout=120) == 0
    n_other = int((tmp_path / "measured").read_text())
    assert min(n_own, n_other) > 0
    assert n_own + n_other == len(finished_slots(study.trials, 0))
    complete(study)
    check(study, expected)


@pytest.mark.kill
@WITH_PROCESSES
def test_a_killed_and_resumed_search_equals_an_uninterrupted_one(
    expected: str, storage_url: str, tmp_path: Path
) -> None:
    study_at(storage_url)
    kill_at = POPULATION + 1  # the first trial of generation 1, whose other trials are queued
    with process(storage_url, tmp_path, SLOTS, kill_at) as child:
        assert child.wait(timeout=120) == -signal.SIGKILL
    study = study_at(storage_url)
    states = Counter(trial.state.name for trial in study.trials)
    assert states == {"COMPLETE": POPULATION, "RUNNING": 1, "WAITING": POPULATION - 1}
    study.optimize(objective_of(SPACE), n_trials=SLOTS - POPULATION)
    assert [t.number for t in study.trials if t.state == TrialState.FAIL] == [POPULATION]
    check(study, expected)


def test_new_objects_continue_a_search(expected: str, storage_url: str) -> None:
    for n_trials in (3, SLOTS - 3):
        work(storage_url, n_trials)
    check(study_at(storage_url), expected)


@contextmanager
def proxy(url: str) -> Iterator[str]:
    """Run Optuna's gRPC proxy in front of a database, in another process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from optuna.storages import run_grpc_proxy_server\n"
        "from effllava_optuna.storage.connection import open_storage\n"
        "storage = open_storage(sys.argv[1], create=True)\n"
        "run_grpc_proxy_server(storage, host='127.0.0.1', port=int(sys.argv[2]))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-c", script, url, str(port)]
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path}) as server:
        try:
            address = f"grpc://127.0.0.1:{port}"
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            yield address
        finally:
            server.terminate()


@pytest.mark.kill
def test_a_proxy_in_front_of_a_database_does_not_change_the_search(
    expected: str, tmp_path: Path
) -> None:
    with proxy(f"sqlite:///{tmp_path / 'a.db'}") as address:
        work(address, 3)
        work(address, SLOTS - 3)
        check(study_at(address), expected)
