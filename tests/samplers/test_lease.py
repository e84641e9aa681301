from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from effllava_optuna.samplers import (
    fail_lost_trials,
    leases_of,
    owner_alive,
    renew_lease,
    storage_of,
    study_id_of,
    this_process,
)
from effllava_optuna.samplers._lease import LEASE_SECONDS


def running_trial(study: optuna.Study, owner: str | None) -> int:
    attrs = {} if owner is None else {"owner": owner}
    study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs=attrs))
    return len(study.trials) - 1


@pytest.fixture
def dead_process() -> str:
    host, _, start = this_process().rsplit(":", 2)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return f"{host}:{child.pid}:{start}"


def test_this_process_is_alive_and_a_reaped_child_is_not(dead_process: str) -> None:
    assert owner_alive(this_process()) is True
    assert owner_alive(dead_process) is False


def test_a_zombie_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not reaped
        host, _, start = this_process().rsplit(":", 2)
        assert owner_alive(f"{host}:{child.pid}:{start}") is False


def test_a_reused_pid_is_another_process() -> None:
    host, pid, start = this_process().rsplit(":", 2)
    assert owner_alive(f"{host}:{pid}:{float(start) - 60}") is False


def test_a_process_on_another_host_is_unknown_without_its_lease() -> None:
    assert owner_alive("elsewhere:1:0.0") is None


def test_a_lease_runs_out_unless_it_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, owner = [100.0], "elsewhere:1:0.0"
    monkeypatch.setattr("effllava_optuna.samplers._lease._last_renewals", {})
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def after(seconds: float, leases: dict[str, int]) -> bool | None:
        clock[0] += seconds
        return owner_alive(owner, leases)

    assert after(0, {owner: 7}) is None  # the lease starts when it is first read
    assert after(LEASE_SECONDS - 1, {owner: 7}) is None
    assert after(10, {owner: 8}) is None
    assert after(LEASE_SECONDS - 1, {owner: 8}) is None
    assert after(2, {owner: 8}) is False
    assert after(1, {owner: 9}) is None  # the process was only slow


def test_a_trial_of_another_host_is_failed_when_its_lease_has_run_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, owner = optuna.create_study(), "elsewhere:1:0.0"
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


def test_only_trials_of_dead_processes_are_failed(dead_process: str) -> None:
    study = optuna.create_study()
    dead = running_trial(study, dead_process)
    for owner in (this_process(), "elsewhere:1:0.0", None):
        running_trial(study, owner)
    assert fail_lost_trials(study) == [dead]
    assert study.trials[dead].user_attrs["void"] == "lost"  # shown on its page of the dashboard
    assert [t.state.name for t in study.trials] == ["FAIL", "RUNNING", "RUNNING", "RUNNING"]


def test_a_trial_without_owner_is_failed_after_the_grace_period() -> None:
    study = optuna.create_study()
    running_trial(study, None)
    study.enqueue_trial({"x": 1})
    assert fail_lost_trials(study, grace_seconds=60) == []
    assert fail_lost_trials(study, grace_seconds=0) == [0]
    assert study.trials[1].state == TrialState.WAITING
