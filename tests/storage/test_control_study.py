from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.errors import StudyError
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.control_study import (
    ControlStudy,
    EpochPublication,
    dead_attempts,
    left_control_studies,
    load_control_study,
    open_control_study,
    published_epochs,
)
from effllava_optuna.storage.names import DIRECTIONS
from effllava_optuna.storage.storage_internals import fail_trial, trial_id_of
from effllava_optuna.storage.studies import create_study, open_study, store_config, study_names
from tests.storage import leaders
from tests.study_fixtures import ended_process, invoke, subprocess_environment

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


def test_an_epoch_lists_its_projectors_and_its_tables(storage: BaseStorage) -> None:
    published = ControlStudy(storage, "s").publish_once(
        1, lambda: EpochPublication(0.5, {}, "a" * 64, "projector.safetensors", "b" * 64)
    )
    assert published.user_attrs["artifact"] == "a" * 64
    assert published.user_attrs["tables"] == "b" * 64
    listed = [json.loads(value)["filename"] for value in published.system_attrs.values()]
    assert sorted(listed) == ["compensation.safetensors", "projector.safetensors"]


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


@pytest.mark.kill
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


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED])
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_attempt_that_somebody_else_ended_publishes_nothing(
    storage: BaseStorage, state: TrialState, epoch: int
) -> None:
    """The dashboard shows the trials of a control study, and ends them with any value."""
    control_study = ControlStudy(storage, "s")
    created = []
    if epoch:
        control_study.publish_once(0, lambda: EpochPublication(0.1, {}, None))

    def create() -> EpochPublication:
        created.append(1)
        values = [0.9] if state == TrialState.COMPLETE else None
        [attempt] = control_study.study.get_trials(states=(TrialState.RUNNING,))
        storage.set_trial_state_values(trial_id_of(attempt), state, values)
        assert ControlStudy(storage, "s").published_attempt(epoch) is None
        return EpochPublication(0.5, {"fact": 1}, None)

    published = control_study.publish_once(epoch, create)
    assert created == [1]
    assert (published.user_attrs["fact"], published.value) == (1, 0.5)
    again = ControlStudy(storage, "s").publish_once(epoch, create)
    assert again.number == published.number
    assert len(published_epochs(control_study.study)) == epoch + 1


def test_trials_that_are_no_attempts_are_not_read(storage: BaseStorage) -> None:
    control_study = ControlStudy(storage, "s")
    study = control_study.study
    study.ask()
    study.add_trial(create_trial(value=0.9))
    published = control_study.publish_once(0, lambda: EpochPublication(0.5, {"fact": 1}, None))
    assert published_epochs(study) == [published]
    assert dead_attempts(study) == []


CONFIG = {"study": {"name": "s"}, "model": {"path": "m"}, "task": {"name": "digits"}}


def begun(url: str) -> optuna.Study:
    return create_study(open_storage(url, create=True), StudyConfig.of(CONFIG))


def publish(study: optuna.Study, fact: str) -> None:
    open_control_study(study).publish_once(0, lambda: EpochPublication(0.5, {"fact": fact}, None))


def published_fact(study: optuna.Study) -> str | None:
    control = load_control_study(study)
    epochs = [] if control is None else published_epochs(control)
    return epochs[0].user_attrs["fact"] if epochs else None


def test_a_new_study_does_not_get_what_belonged_to_a_deleted_one_of_its_name(
    storage_url: str,
) -> None:
    for number in range(3):
        study = begun(storage_url)
        assert published_fact(study) is None
        publish(study, f"of study {number}")
        assert published_fact(open_study(open_storage(storage_url), "s")) == f"of study {number}"
        assert study_names(storage_url) == ["s"]
        optuna.delete_study(study_name="s", storage=open_storage(storage_url))
    assert study_names(storage_url) == []


def test_a_control_study_that_was_never_used_is_used(storage_url: str) -> None:
    """A process was killed while it created a study."""
    optuna.delete_study(
        study_name=begun(storage_url).study_name, storage=open_storage(storage_url)
    )
    publish(begun(storage_url), "new")
    assert optuna.get_all_study_names(open_storage(storage_url)) == ["s/projector", "s"]


def test_a_study_that_another_program_had_named_so_is_not_used(storage_url: str) -> None:
    other = optuna.create_study(
        storage=open_storage(storage_url, create=True), study_name="s/projector"
    )
    other.optimize(lambda _: 1.0, n_trials=1)
    study = begun(storage_url)
    publish(study, "new")
    assert published_fact(study) == "new"
    assert len(other.trials) == 1


def test_processes_that_prepare_one_study_agree_on_its_control_study(storage_url: str) -> None:
    """Each of them has read that it has none."""
    publish(begun(storage_url), "old")
    optuna.delete_study(study_name="s", storage=open_storage(storage_url))
    optuna.create_study(storage=open_storage(storage_url), study_name="s", directions=DIRECTIONS)
    first, second = (
        optuna.load_study(storage=open_storage(storage_url), study_name="s") for _ in range(2)
    )
    store_config(first, StudyConfig.of(CONFIG))
    publish(first, "new")
    store_config(second, StudyConfig.of(CONFIG))
    assert published_fact(first) == published_fact(second) == "new"


def test_a_renamed_study_keeps_its_control_study(storage_url: str) -> None:
    """The dashboard copies a study under its new name, and deletes the other one."""
    publish(begun(storage_url), "its own")
    storage = open_storage(storage_url)
    optuna.copy_study(
        from_study_name="s", from_storage=storage, to_storage=storage, to_study_name="t"
    )
    optuna.delete_study(study_name="s", storage=storage)
    publish(begun(storage_url), "another")
    assert published_fact(open_study(storage, "t")) == "its own"


def test_a_study_whose_control_study_was_deleted_is_not_calibrated_again(storage_url: str) -> None:
    study = begun(storage_url)
    publish(study, "old")
    slot = {"epoch": 0, "generation": 0, "index": 0, "attempt": 0}
    study.add_trial(create_trial(values=[0.5, 1.0], user_attrs=slot))
    optuna.delete_study(study_name="s/projector", storage=open_storage(storage_url))
    with pytest.raises(StudyError, match="'s/projector', which belongs to study 's', is missing"):
        open_control_study(study)


def test_a_copy_of_a_study_does_not_publish_for_the_other_one(storage_url: str) -> None:
    publish(begun(storage_url), "of both")
    storage = open_storage(storage_url)
    optuna.copy_study(
        from_study_name="s", from_storage=storage, to_storage=storage, to_study_name="t"
    )
    with pytest.raises(StudyError, match="Study 't' is a copy of study 's'"):
        open_control_study(open_study(storage, "t"))
    assert published_fact(open_study(storage, "t")) == "of both"  # it can be looked at
    open_control_study(open_study(storage, "s"))


def test_control_studies_of_deleted_studies_are_listed(storage_url: str) -> None:
    storage = open_storage(storage_url, create=True)
    publish(begun(storage_url), "old")
    assert left_control_studies(storage) == []
    optuna.delete_study(study_name="s", storage=storage)
    publish(begun(storage_url), "new")
    assert left_control_studies(storage) == ["s/projector"]
    words = ("doctor", "--storage", storage_url, "--study-name", "s")
    printed = " ".join(invoke(*words, check=False).stdout.split())
    assert "of deleted studies: s/projector" in printed
