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

from effllava_optuna.samplers import beat, owner_alive, pulses_of, reap, this_process
from effllava_optuna.samplers._owner import LEASE_SECONDS


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


def test_this_process_lives_and_a_waited_child_does_not(dead_process: str) -> None:
    assert owner_alive(this_process()) is True
    assert owner_alive(dead_process) is False


def test_a_zombie_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays
        host, _, start = this_process().rsplit(":", 2)
        assert owner_alive(f"{host}:{child.pid}:{start}") is False


def test_a_reused_pid_is_another_process() -> None:
    host, pid, start = this_process().rsplit(":", 2)
    assert owner_alive(f"{host}:{pid}:{float(start) - 60}") is False


def test_other_hosts_cannot_be_seen() -> None:
    assert owner_alive("elsewhere:1:0.0") is None


def test_a_lease_runs_out_when_the_pulse_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, owner = [100.0], "elsewhere:1:0.0"
    monkeypatch.setattr("effllava_optuna.samplers._owner._seen", {})
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def after(seconds: float, pulses: dict[str, int]) -> bool | None:
        clock[0] += seconds
        return owner_alive(owner, pulses)

    assert after(0, {owner: 7}) is None  # the lease begins when it is first looked at
    assert after(LEASE_SECONDS - 1, {owner: 7}) is None
    assert after(10, {owner: 8}) is None
    assert after(LEASE_SECONDS - 1, {owner: 8}) is None
    assert after(2, {owner: 8}) is False
    assert after(1, {owner: 9}) is None  # it was only slow


def test_a_trial_of_another_host_is_reaped_when_its_lease_has_run_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, owner = optuna.create_study(), "elsewhere:1:0.0"
    running_trial(study, owner)
    study._storage.set_study_system_attr(study._study_id, f"pulse:{owner}", 3)
    monkeypatch.setattr("effllava_optuna.samplers._owner._seen", {})
    assert reap(study) == []
    monkeypatch.setattr("effllava_optuna.samplers._owner.LEASE_SECONDS", -1.0)
    assert reap(study) == [0]


def test_whoever_works_on_a_study_that_others_can_see_has_a_pulse(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'a.db'}")
    beat(study)
    beat(study)  # it has one already
    deadline = time.monotonic() + 60
    while not pulses_of(study) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pulses_of(study) == {this_process(): 0}
    assert sum(thread.name == "pulse" for thread in threading.enumerate()) >= 1
    alone = optuna.create_study()
    beat(alone)
    assert pulses_of(alone) == {}


def test_reaping_fails_the_dead_and_spares_the_others(dead_process: str) -> None:
    study = optuna.create_study()
    dead = running_trial(study, dead_process)
    for owner in (this_process(), "elsewhere:1:0.0", None):
        running_trial(study, owner)
    assert reap(study) == [dead]
    assert study.trials[dead].user_attrs["void"] == "lost"  # for whoever reads its page
    assert [t.state.name for t in study.trials] == ["FAIL", "RUNNING", "RUNNING", "RUNNING"]


def test_a_trial_without_owner_is_reaped_after_the_grace() -> None:
    study = optuna.create_study()
    running_trial(study, None)
    study.enqueue_trial({"x": 1})
    assert reap(study, grace_seconds=60) == []
    assert reap(study, grace_seconds=0) == [0]
    assert study.trials[1].state == TrialState.WAITING
