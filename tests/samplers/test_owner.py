from __future__ import annotations

import os
import subprocess
import sys

import optuna
import pytest
from optuna.trial import TrialState

from effllava_optuna.samplers import owner_alive, reap
from effllava_optuna.samplers._owner import this_process


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


def test_reaping_fails_the_dead_and_spares_the_others(dead_process: str) -> None:
    study = optuna.create_study()
    dead = running_trial(study, dead_process)
    for owner in (this_process(), "elsewhere:1:0.0", None):
        running_trial(study, owner)
    assert reap(study) == [dead]
    assert [t.state.name for t in study.trials] == ["FAIL", "RUNNING", "RUNNING", "RUNNING"]


def test_a_trial_without_owner_is_reaped_after_the_grace() -> None:
    study = optuna.create_study()
    running_trial(study, None)
    study.enqueue_trial({"x": 1})
    assert reap(study, grace_seconds=60) == []
    assert reap(study, grace_seconds=0) == [0]
    assert study.trials[1].state == TrialState.WAITING
