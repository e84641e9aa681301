from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from effllava_optuna.samplers import (
    _lease,
    fail_lost_trials,
    leases_of,
    lost_trials,
    owner_alive,
    release_trial,
    renew_lease,
    storage_of,
    study_id_of,
    this_process,
)
from effllava_optuna.samplers._lease import (
    _RENEWAL_SECONDS,
    GRACE_SECONDS,
    LEASE_SECONDS,
    _RunningClock,
)
from tests.study_fixtures import ended_process

ELSEWHERE = "elsewhere:1:500:0123456789ab:00000000"


def running_trial(study: optuna.Study, owner: str | None) -> int:
    attrs = {} if owner is None else {"owner": owner}
    study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs=attrs))
    return len(study.trials) - 1


def test_a_process_on_another_host_is_unknown_without_its_lease() -> None:
    assert owner_alive(ELSEWHERE) is None


class Clock:
    """A clock of the operating system that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("effllava_optuna.samplers._lease._last_renewals", {})
        monkeypatch.setattr("effllava_optuna.samplers._lease._clock", _RunningClock())
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def after(self, seconds: float, renewal: int, *, running: bool = True) -> bool | None:
        """Return whether a process is alive whose lease is read after some seconds.

        Args:
            seconds: How far the clock moves.
            renewal: The number that the lease has then.
            running: Whether this process renews its own lease meanwhile.
        """
        target = self.now + seconds
        while running and self.now + _RENEWAL_SECONDS < target:
            self.now += _RENEWAL_SECONDS
            _lease._clock.seconds()
        self.now = target
        return owner_alive(ELSEWHERE, {ELSEWHERE: renewal})


def test_a_lease_runs_out_unless_it_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert clock.after(0, 7) is None  # the lease starts when it is first read
    assert clock.after(LEASE_SECONDS - 1, 7) is None
    assert clock.after(10, 8) is None
    assert clock.after(LEASE_SECONDS - 1, 8) is None
    assert clock.after(2, 8) is False
    assert clock.after(1, 9) is None  # the process was only slow


def test_processes_that_were_suspended_together_do_not_take_each_other_for_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Frozen containers, stopped jobs, a closed laptop: only the clock goes on."""
    clock = Clock(monkeypatch)
    assert clock.after(0, 7) is None
    assert clock.after(8 * 3600, 7, running=False) is None
    assert clock.after(60, 7) is None
    assert clock.after(8 * 3600, 8, running=False) is None
    assert clock.after(LEASE_SECONDS + 1, 8) is False


def test_a_lease_is_renewed_after_a_write_that_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A locked database, a server that restarts: the process is not dead."""
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'a.db'}")
    failures = iter([OSError("no route"), StorageInternalError("locked")])
    write = type(storage_of(study)).set_study_system_attr

    def written(*arguments: Any) -> None:
        for failure in failures:
            raise failure
        write(*arguments)

    monkeypatch.setattr(type(storage_of(study)), "set_study_system_attr", written)
    monkeypatch.setattr("effllava_optuna.samplers._lease._RENEWAL_SECONDS", 0.01)
    renew_lease(study)
    deadline = time.monotonic() + 60
    while not leases_of(study) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert leases_of(study)[this_process()] >= 2


def test_a_trial_of_another_host_is_failed_when_its_lease_has_run_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, owner = optuna.create_study(), ELSEWHERE
    running_trial(study, owner)
    storage_of(study).set_study_system_attr(study_id_of(study), f"lease:{owner}", 3)
    monkeypatch.setattr("effllava_optuna.samplers._lease._last_renewals", {})
    assert fail_lost_trials(study) == []
    monkeypatch.setattr("effllava_optuna.samplers._lease.LEASE_SECONDS", -1.0)
    assert fail_lost_trials(study) == [0]


def test_a_process_that_works_on_a_shared_study_has_a_lease(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'a.db'}")
    renew_lease(study)
    renew_lease(study)  # starts no second thread
    deadline = time.monotonic() + 60
    while not leases_of(study) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert leases_of(study) == {this_process(): 0}
    assert sum(thread.name == "lease" for thread in threading.enumerate()) >= 1
    in_memory = optuna.create_study()
    renew_lease(in_memory)
    assert leases_of(in_memory) == {}


def test_only_trials_of_dead_processes_are_failed() -> None:
    study = optuna.create_study()
    dead = running_trial(study, ended_process())
    for owner in (this_process(), ELSEWHERE, None):
        running_trial(study, owner)
    assert fail_lost_trials(study) == [dead]
    assert study.trials[dead].user_attrs["void"] == "lost"  # shown on its page of the dashboard
    assert [t.state.name for t in study.trials] == ["FAIL", "RUNNING", "RUNNING", "RUNNING"]


def test_a_lost_trial_that_a_user_enqueued_is_enqueued_again_twice() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"x": 1}, user_attrs={"note": "mine"})
    for number in range(3):
        assert study.trials[-1].number == number
        assert study.trials[-1].state == TrialState.WAITING
        trial = study.ask()
        storage_of(study).set_trial_system_attr(trial._trial_id, "owner", ended_process())
        assert fail_lost_trials(study) == [number]
        assert fail_lost_trials(study) == []
    assert len(study.trials) == 3  # its parameters may be what ends the processes
    assert all(trial.user_attrs["note"] == "mine" for trial in study.trials)
    assert all(trial.system_attrs["fixed_params"] == {"x": 1} for trial in study.trials)


def test_interrupted_trials_are_enqueued_again_if_users_enqueued_them() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"x": 1})
    for number in range(4):  # whatever interrupts it, its parameters are not the reason
        trial = study.ask()
        assert trial.number == number
        assert fail_lost_trials(study) == []
        release_trial(trial)
        study.tell(trial, state=TrialState.FAIL)
        assert fail_lost_trials(study) == []
        states = [each.state for each in study.trials]
        assert states == [TrialState.FAIL] * (number + 1) + [TrialState.WAITING]
    assert [each.user_attrs.get("repeated") for each in study.trials] == [None, 0, 0, 0, 0]
    study.tell(study.ask(), 1.0)
    assert fail_lost_trials(study) == []
    assert len(study.trials) == 5


def test_an_interrupted_trial_of_the_sampler_is_not_enqueued() -> None:
    study = optuna.create_study()
    trial = study.ask()
    release_trial(trial)
    study.tell(trial, state=TrialState.FAIL)
    assert fail_lost_trials(study) == []
    assert len(study.trials) == 1  # its slot is due again


def test_a_trial_without_owner_is_failed_after_the_grace_period() -> None:
    study = optuna.create_study()
    running_trial(study, None)
    study.enqueue_trial({"x": 1})
    assert fail_lost_trials(study, grace_seconds=60) == []
    assert fail_lost_trials(study, grace_seconds=0) == [0]
    assert study.trials[1].state == TrialState.WAITING


@pytest.mark.parametrize("skew", [timedelta(hours=-14), timedelta(minutes=-5), timedelta(hours=9)])
def test_the_grace_period_does_not_depend_on_the_clock_of_another_machine(
    skew: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    study = optuna.create_study()
    study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING))
    trials = study.get_trials()
    trials[0].datetime_start = datetime.now() + skew
    assert fail_lost_trials(study, trials) == []
    clock.now += GRACE_SECONDS - 1
    assert fail_lost_trials(study, trials) == []
    clock.now += 2
    assert fail_lost_trials(study, trials) == [0]


def test_a_trial_that_has_had_no_owner_for_days_is_lost() -> None:
    study = optuna.create_study()
    trials = [optuna.trial.create_trial(state=TrialState.RUNNING)]
    trials[0].datetime_start = datetime.now() - timedelta(days=3)
    study.add_trial(trials[0])
    assert lost_trials(study, trials) == trials
