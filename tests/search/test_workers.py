"""Several processes, one study: the same trials as one process, each epoch made once."""

from __future__ import annotations

import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from effllava_optuna.search.runner import conclude, resume, search
from effllava_optuna.search.workers import devices_for
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.control_study import ControlStudy
from effllava_optuna.storage.names import RESULTS, control_name
from effllava_optuna.storage.studies import open_study
from effllava_optuna.storage.trial_records import search_digest
from tests.cli.commands.test_study_commands import wait_for_trials
from tests.conftest import new_database
from tests.study_fixtures import TINY_TRIALS, begin_study, copy_study, start_command, write_tiny


@pytest.fixture(scope="module")
def prepared(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of the tiny model whose calibration is published."""
    return begin_study(write_tiny(checkpoint, tmp_path_factory.mktemp("prepared")))


@pytest.fixture(scope="module")
def expected(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of what one undisturbed process measures."""
    url = url_of(copy_study(prepared, tmp_path_factory.mktemp("alone") / "copy_study"))
    study = open_study(open_storage(url), "tiny")
    with resume(study, url) as session:
        search(session)
    return search_digest(study)


@pytest.fixture(scope="module")
def with_curves(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with more generations, of which the first measure sensitivity curves."""
    file = write_tiny(checkpoint, tmp_path_factory.mktemp("with-curves"))
    keys = 'generations = 4\ncurves = "measured"\ntrust_region = 1'
    file.write_text(file.read_text().replace("generations = 2", keys))
    return begin_study(file)


def url_of(file: Path) -> str:
    return f"sqlite:///{file.with_suffix('.db')}"


def worker(url: str) -> BaseProcess:
    return start_command("worker", "--storage", url, "--study-name", "tiny")


def exit_codes(workers: list[BaseProcess]) -> list[int | None]:
    """Wait for all workers, and return their exit codes."""
    for process in workers:
        process.join(600)
    return [process.exitcode for process in workers]


def check(url: str, expected: str, planned: int = TINY_TRIALS) -> None:
    """Every slot was measured once, each epoch made once, and all as one process does it."""
    opened = open_storage(url)
    study = open_study(opened, "tiny")
    assert search_digest(study) == expected
    trials = study.get_trials(deepcopy=False)
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == planned
    assert not [trial for trial in trials if not trial.state.is_finished()]
    made = ControlStudy(opened, "tiny/projector").study.get_trials(
        deepcopy=False, states=(TrialState.COMPLETE,)
    )
    epochs = [attempt.params["epoch"] for attempt in made]
    assert sorted(epochs) == sorted(set(epochs))
    assert {0, 1} <= set(epochs)


@pytest.mark.kill
def test_two_workers_measure_what_one_does(prepared: Path, expected: str, tmp_path: Path) -> None:
    url = url_of(copy_study(prepared, tmp_path / "two"))
    workers = [worker(url), worker(url)]
    assert exit_codes(workers) == [0, 0]
    check(url, expected)
    opened = open_storage(url)
    # Workers do not conclude a study; of several processes that try, one does.
    study = open_study(opened, "tiny")
    assert RESULTS not in study.user_attrs
    with resume(study, url) as session:
        conclude(session)
        first = study.user_attrs[RESULTS]
        conclude(session)
        assert study.user_attrs[RESULTS] == first
    check(url, expected)


@pytest.mark.kill
@pytest.mark.parametrize("seed", range(3))
def test_workers_may_be_killed_and_come_back(
    prepared: Path, expected: str, tmp_path: Path, seed: int
) -> None:
    """Four at a time; whenever some trials are done, one dies and another one joins."""
    rng = np.random.default_rng(seed)
    file = copy_study(prepared, tmp_path / "workers")
    url = url_of(file)
    workers = [worker(url) for _ in range(4)]
    for done in range(3, TINY_TRIALS - 3, 4):
        wait_for_trials(file.with_suffix(".db"), done)
        time.sleep(rng.random() / 2)
        workers.pop(int(rng.integers(len(workers)))).kill()
        workers.append(worker(url))
    assert exit_codes(workers) == [0] * 4
    check(url, expected)


@pytest.mark.kill
def test_kills_among_four_workers_change_no_curve(with_curves: Path, tmp_path: Path) -> None:
    planned = 2 * TINY_TRIALS
    alone = url_of(copy_study(with_curves, tmp_path / "alone"))
    study = open_study(open_storage(alone), "tiny")
    with resume(study, alone) as session:
        search(session)
    kinds = [trial.user_attrs["kind"] for trial in study.get_trials(deepcopy=False)]
    assert {"curve", "allocated", "screened"} <= set(kinds)
    file = copy_study(with_curves, tmp_path / "workers")
    workers = [worker(url_of(file)) for _ in range(4)]
    for done in (3, 11, 30):  # among the points of the curves, what they allocate, and in context
        wait_for_trials(file.with_suffix(".db"), done)
        workers.pop(0).kill()
        workers.append(worker(url_of(file)))
    assert exit_codes(workers) == [0] * 4
    check(url_of(file), search_digest(study), planned)


@pytest.mark.servers
def test_four_workers_on_a_server_measure_what_one_does_on_a_file(
    checkpoint: Path, postgresql: str, tmp_path: Path
) -> None:
    """The same calibration on both: its tensors lie in a directory of their own."""
    file = write_tiny(checkpoint, tmp_path)
    table = f'[study]\nname = "tiny"\nartifacts = "{tmp_path}/shared"\n'
    file.write_text(table + file.read_text())
    begin_study(file)
    alone, server = url_of(file), new_database(postgresql)
    there = open_storage(server, create=True)
    for name in ("tiny", control_name("tiny")):
        optuna.copy_study(from_study_name=name, from_storage=open_storage(alone), to_storage=there)
    workers = [worker(server) for _ in range(4)]
    study = open_study(open_storage(alone), "tiny")
    with resume(study, alone) as session:
        search(session)
    assert exit_codes(workers) == [0] * 4
    check(server, search_digest(study))


@pytest.mark.parametrize(
    ("workers", "names", "assigned"),
    [
        (1, None, [None]),
        (3, "cpu", ["cpu"] * 3),
        (3, "cuda:0, cuda:1", ["cuda:0", "cuda:1", "cuda:0"]),
    ],
)
def test_devices_are_assigned_in_turn(
    workers: int, names: str | None, assigned: list[str | None]
) -> None:
    assert devices_for(workers, names) == assigned
