from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from optuna.trial import TrialState

from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.control_study import ControlStudy, EpochPublication
from effllava_optuna.storage.storage_internals import fail_trial, trial_id_of
from tests.storage import leaders
from tests.study_fixtures import ended_process, subprocess_environment

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.storages import BaseStorage


@pytest.fixture
def storage(tmp_path: Path) -> BaseStorage:
    return open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)


def test_an_epoch_is_created_once(storage: BaseStorage) -> None:
    control_study = ControlStudy(storage, "s")
    created = []

    def create() -> EpochPublication:
        created.append(1)
        return EpochPublication(0.5, {"fact": [1, 2]}, None)

    first = control_study.publish_once(0, create)
    again = ControlStudy(storage, "s").publish_once(0, create)
    assert created == [1]
    assert first.number == again.number
    assert again.user_attrs["fact"] == [1, 2]
    assert again.params == {"epoch": 0, "attempt": 0}


def test_threads_that_publish_the_same_epoch_get_the_same_attempt(storage: BaseStorage) -> None:
    control_study = ControlStudy(storage, "s")
    created, numbers = [], []
    gate = threading.Barrier(3)

    def create() -> EpochPublication:
        created.append(1)
        return EpochPublication(0.5, {}, None)

    def publish() -> None:
        gate.wait()
        numbers.append(control_study.publish_once(0, create).number)

    threads = [threading.Thread(target=publish) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert created == [1]
    assert len(numbers) == 3
    assert len(set(numbers)) == 1


def test_a_failed_attempt_is_followed_by_another(storage: BaseStorage) -> None:
    control_study = ControlStudy(storage, "s")

    def broken() -> EpochPublication:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        control_study.publish_once(0, broken)
    assert control_study.published_epochs() == []
    published = control_study.publish_once(0, lambda: EpochPublication(0.5, {}, None))
    assert published.params == {"epoch": 0, "attempt": 1}


def test_an_attempt_of_a_dead_process_is_taken_over(storage: BaseStorage) -> None:
    control_study = ControlStudy(storage, "s")
    attempt = control_study._start_attempt(0)
    assert attempt is not None
    storage.set_trial_user_attr(trial_id_of(attempt), "owner", ended_process())
    published = control_study.publish_once(0, lambda: EpochPublication(0.5, {}, None))
    states = [trial.state for trial in control_study.study.get_trials(deepcopy=False)]
    assert published.number == 1
    assert states == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_leader_that_was_taken_over_publishes_nothing(storage: BaseStorage) -> None:
    """Its process was only slow: its lease ran out, and another process has published."""
    control_study = ControlStudy(storage, "s")

    def slow() -> EpochPublication:
        (attempt,) = control_study.study.get_trials(deepcopy=False)
        fail_trial(control_study.study, attempt)
        ControlStudy(storage, "s").publish_once(
            0, lambda: EpochPublication(0.9, {"by": "another"}, None)
        )
        return EpochPublication(0.1, {"by": "the slow one"}, None)

    published = control_study.publish_once(0, slow)
    assert published.user_attrs["by"] == "another"
    states = [trial.state for trial in control_study.study.get_trials(deepcopy=False)]
    assert states == [TrialState.FAIL, TrialState.COMPLETE]


def test_processes_publish_each_epoch_once_although_some_are_killed(tmp_path: Path) -> None:
    """The test of `tests/search/test_faults.py` with fewer processes and epochs."""
    url, workers, epochs = f"sqlite:///{tmp_path / 'a.db'}", 3, 8
    completed = subprocess.run(
        [sys.executable, "-m", leaders.__name__, url, "0", str(workers), str(epochs)],
        capture_output=True, text=True, check=True, env=subprocess_environment(),
    )  # fmt: skip
    outcome = json.loads(completed.stdout)
    assert outcome["ended"] == {"0": workers}, completed.stderr
    assert outcome["epochs"] == list(range(epochs))
    assert outcome["open"] == 0


def test_epochs_are_read_up_to_the_first_gap(storage: BaseStorage) -> None:
    control_study = ControlStudy(storage, "s")
    first, third = (
        control_study.publish_once(epoch, lambda: EpochPublication(0.5, {}, None)).number
        for epoch in (0, 2)
    )
    assert [attempt.number for attempt in control_study.published_epochs()] == [first]
    published = control_study.published_attempt(2)
    assert published is not None
    assert published.number == third
    assert control_study.published_attempt(1) is None
