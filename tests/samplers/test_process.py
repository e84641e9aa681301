"""What a name says about its process: dead only if that is certain, from wherever it is read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from effllava_optuna.samplers import _process, owner_alive, this_process

if TYPE_CHECKING:
    from collections.abc import Iterator

# The module alone, without its package: a child need not import Optuna.
WAIT = "import _process; print(_process.this_process(), flush=True); input()"
ASK = "import sys, _process; print(_process.process_exists(sys.argv[1]))"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(_process.__file__).parent)}
UNSHARE = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
OWN_PROC, PROC_OF_PARENT = [*UNSHARE, "--mount-proc"], UNSHARE


@pytest.fixture
def container() -> None:
    """Skip where a process may not create a PID namespace."""
    if (
        shutil.which("unshare") is None
        or subprocess.run([*OWN_PROC, "true"], check=False).returncode
    ):
        pytest.skip("this system does not let a user create a PID namespace")


@contextmanager
def running(*prefix: str, program: str = WAIT) -> Iterator[str]:
    """Run a process, in a namespace of its own by ``prefix``; yield its name."""
    command = [*prefix, sys.executable, "-c", program]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=ENVIRONMENT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate("\n")


def asked(name: str, *prefix: str) -> str:
    """Return what a process says about another, in a namespace of its own by ``prefix``."""
    command = [*prefix, sys.executable, "-c", ASK, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return done.stdout.strip()


@pytest.mark.usefixtures("container")
@pytest.mark.parametrize("namespace", [OWN_PROC, PROC_OF_PARENT])
def test_a_process_in_a_container_is_not_dead_although_its_pid_is_that_of_another_process(
    namespace: list[str],
) -> None:
    with running(*namespace) as name:
        assert owner_alive(name) is None
    assert owner_alive(name) is None  # its lease will run out


@pytest.mark.usefixtures("container")
@pytest.mark.parametrize("namespace", [OWN_PROC, PROC_OF_PARENT])
def test_a_process_in_a_container_does_not_take_those_outside_for_dead(
    namespace: list[str],
) -> None:
    assert asked(this_process(), *namespace) == "None"
    assert asked(this_process()) == "True"


@pytest.mark.usefixtures("container")
def test_two_containers_have_different_names_for_processes_of_one_pid() -> None:
    with running(*OWN_PROC) as first, running(*OWN_PROC) as second:
        assert first != second
        assert asked(first, *OWN_PROC) == "None"


def test_the_clock_may_be_set_while_a_process_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock moves by hours when a suspended virtual machine goes on."""
    if sys.platform != "linux":
        pytest.skip("other systems store the time at which a process started")
    with running() as name:
        created = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: created(self) + 3600)
        assert owner_alive(name) is True
    assert owner_alive(name) is False


def test_a_process_that_proc_hides_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the mount option ``hidepid``, for processes of other users."""
    if sys.platform != "linux":
        pytest.skip("only Linux can hide processes")
    with running() as name:
        monkeypatch.setattr("effllava_optuna.samplers._process._PROC", "/nonexistent")
        assert owner_alive(name) is None


def test_a_process_of_another_user_is_alive() -> None:
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root can start a process of another user")
    # It imports first: another user may not be allowed to read the packages of this one.
    program = f"import os, _process; os.setgroups([]); os.setuid(65534); {WAIT}"
    with running(program=program) as name:
        assert owner_alive(name) is True


@pytest.mark.parametrize(
    "name", ["", "elsewhere:1:0.0", "host:12:1700000000.25", ":::::", "a:b:c:d:e", "no name"]
)
def test_names_that_cannot_be_looked_up_are_unknown(name: str) -> None:
    assert owner_alive(name) is None


def test_a_process_that_has_ended_is_dead() -> None:
    assert owner_alive(this_process()) is True
    with running() as name:
        assert owner_alive(name) is True
    assert owner_alive(name) is False


def test_a_zombie_is_dead() -> None:
    command = [sys.executable, "-c", WAIT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        name = process.stdout.readline().strip()
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is not reaped yet
        assert owner_alive(name) is False


def test_a_process_with_the_id_of_an_ended_one_is_another_process() -> None:
    host, pid, start, *rest = this_process().rsplit(":", 4)
    earlier = ":".join([host, pid, f"{float(start) - 60}", *rest])
    assert owner_alive(earlier) is False
