"""Several processes, one study: the same trials as one process, each epoch made once."""

from __future__ import annotations

import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from effllava_optuna.study import storage
from effllava_optuna.study.crew import devices_for
from effllava_optuna.study.ledger import Ledger
from effllava_optuna.study.loop import conclude, continued, search
from effllava_optuna.study.records import digest_of
from tests.conftest import new_database
from tests.study.conftest import TINY_TRIALS, calibrate, clone, started, write_tiny
from tests.study.test_cli import wait_for_trials


@pytest.fixture(scope="module")
def prepared(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of the tiny model whose bundle is published."""
    return calibrate(write_tiny(checkpoint, tmp_path_factory.mktemp("prepared")))


@pytest.fixture(scope="module")
def expected(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of what one undisturbed process measures."""
    url = url_of(clone(prepared, tmp_path_factory.mktemp("alone") / "clone"))
    study = storage.open_study(storage.open_storage(url), "tiny")
    with continued(study, url) as epochs:
        search(epochs)
    return digest_of(study)


def url_of(file: Path) -> str:
    return f"sqlite:///{file.with_suffix('.db')}"


def worker(url: str) -> BaseProcess:
    return started("worker", "--storage", url, "--study-name", "tiny")


def ends(crew: list[BaseProcess]) -> list[int | None]:
    """Wait for everybody; give their exit codes."""
    for process in crew:
        process.join(600)
    return [process.exitcode for process in crew]


def check(url: str, expected: str) -> None:
    """Every slot was measured once, each epoch made once, and all as one process does it."""
    opened = storage.open_storage(url)
    study = storage.open_study(opened, "tiny")
    assert digest_of(study) == expected
    trials = study.get_trials(deepcopy=False)
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == TINY_TRIALS
    assert not [trial for trial in trials if not trial.state.is_finished()]
    made = Ledger(opened, "tiny").study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    epochs = [attempt.params["epoch"] for attempt in made]
    assert sorted(epochs) == sorted(set(epochs))
    assert {0, 1} <= set(epochs)


@pytest.mark.slow
def test_two_workers_measure_what_one_does(prepared: Path, expected: str, tmp_path: Path) -> None:
    url = url_of(clone(prepared, tmp_path / "two"))
    workers = [worker(url), worker(url)]
    assert ends(workers) == [0, 0]
    check(url, expected)
    opened = storage.open_storage(url)
    trials = storage.open_study(opened, "tiny").get_trials(deepcopy=False)
    assert len({trial.system_attrs.get("owner") for trial in trials}) == 2
    # The study is not concluded by workers, and by one of several that try.
    study = storage.open_study(opened, "tiny")
    assert storage.RESULTS not in study.user_attrs
    with continued(study, url) as epochs:
        conclude(epochs)
        first = study.user_attrs[storage.RESULTS]
        conclude(epochs)
        assert study.user_attrs[storage.RESULTS] == first
    check(url, expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_workers_may_be_killed_and_come_back(
    prepared: Path, expected: str, tmp_path: Path, seed: int
) -> None:
    """Four at a time; whenever some trials are done, one dies and another one joins."""
    rng = np.random.default_rng(seed)
    file = clone(prepared, tmp_path / "crowd")
    url = url_of(file)
    crowd = [worker(url) for _ in range(4)]
    for done in range(3, TINY_TRIALS - 3, 4):
        wait_for_trials(file.with_suffix(".db"), done)
        time.sleep(rng.random() / 2)
        crowd.pop(int(rng.integers(len(crowd)))).kill()
        crowd.append(worker(url))
    assert ends(crowd) == [0] * 4
    check(url, expected)


@pytest.mark.slow
def test_four_workers_on_a_server_measure_what_one_does_on_a_file(
    checkpoint: Path, postgresql: str, tmp_path: Path
) -> None:
    """The same bundle on both: its tensors lie in a directory of their own."""
    file = write_tiny(checkpoint, tmp_path)
    table = f'[study]\nname = "tiny"\nartifacts = "{tmp_path}/shared"\n'
    file.write_text(table + file.read_text())
    calibrate(file)
    alone, server = url_of(file), new_database(postgresql)
    there = storage.open_storage(server, create=True)
    for name in ("tiny", storage.control_name("tiny")):
        optuna.copy_study(
            from_study_name=name, from_storage=storage.open_storage(alone), to_storage=there
        )
    crowd = [worker(server) for _ in range(4)]
    study = storage.open_study(storage.open_storage(alone), "tiny")
    with continued(study, alone) as epochs:
        search(epochs)
    assert ends(crowd) == [0] * 4
    shared = storage.open_study(there, "tiny")
    measured = shared.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    owners = {trial.system_attrs["owner"] for trial in measured}
    assert 2 <= len(owners) <= 4  # whoever begins late may find nothing left to measure
    check(server, digest_of(study))


@pytest.mark.parametrize(
    ("workers", "told", "dealt"),
    [
        (1, None, [None]),
        (3, "cpu", ["cpu"] * 3),
        (3, "cuda:0, cuda:1", ["cuda:0", "cuda:1", "cuda:0"]),
    ],
)
def test_devices_are_dealt_in_turn(
    workers: int, told: str | None, dealt: list[str | None]
) -> None:
    assert devices_for(workers, told) == dealt
