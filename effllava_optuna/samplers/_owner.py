"""Who evaluates a trial, and whether that process still lives.

Optuna's heartbeat needs a thread, works on relational storages only and takes slow for dead. A
process on the same host can simply be looked up.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import psutil
from optuna.logging import get_logger
from optuna.trial import FrozenTrial, TrialState

from effllava_optuna.samplers import _compat
from effllava_optuna.samplers._slots import LOST, WITHDRAWN

if TYPE_CHECKING:
    from optuna.study import Study

GRACE_SECONDS = 30.0

# Start times come from the wall clock, which may be adjusted a little between two looks.
_SAME_START_SECONDS = 1.0

_logger = get_logger(__name__)


def this_process() -> str:
    """Name this process: ``host:pid:start``, the start in seconds since 1970.

    The start time tells it from a later process that was given the same pid.
    """
    return _name_of(os.getpid())


@functools.cache  # by pid: a forked child is another process
def _name_of(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}:{psutil.Process(pid).create_time():.2f}"


def owner_alive(owner: str) -> bool | None:
    """Tell whether a process lives; None where it is on another host and cannot be seen."""
    host, pid, start = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return None
    try:
        process = psutil.Process(int(pid))
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(abs(process.create_time() - float(start)) <= _SAME_START_SECONDS)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True  # it exists, but is not ours to look at


def sign(study: Study, trial: FrozenTrial) -> None:
    """Write this process down as the owner of a trial."""
    _compat.set_system_attrs(study, trial, {_compat.OWNER: this_process()})


def give_back(study: Study, trial_id: int) -> None:
    """Say that a trial is stopped from outside: its slot is tried again, and nothing failed."""
    study._storage.set_trial_system_attr(trial_id, _compat.VOID, WITHDRAWN)


def reap(study: Study, *, grace_seconds: float = GRACE_SECONDS) -> list[int]:
    """Fail the RUNNING trials that nobody evaluates any more.

    Args:
        study: The study.
        grace_seconds: How long a trial may run without an owner. It has none between the moment
            it is taken from the queue and the moment the sampler sees it; a process that was
            killed in between leaves it so. Zero only where no other worker is starting a trial.

    Returns:
        Numbers of the trials that were failed.
    """
    return reap_among(study, study.get_trials(deepcopy=False), grace_seconds=grace_seconds)


def reap_among(
    study: Study, trials: Iterable[FrozenTrial], *, grace_seconds: float = GRACE_SECONDS
) -> list[int]:
    """Do what `reap` does, on trials that were read already."""
    overdue = datetime.now() - timedelta(seconds=grace_seconds)
    reaped = []
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        owner = trial.system_attrs.get(_compat.OWNER)
        if owner is None:
            dead = trial.datetime_start is not None and trial.datetime_start <= overdue
        else:
            dead = owner_alive(owner) is False
        if dead and _compat.fail(study, trial, void=LOST):
            _logger.warning(f"Trial {trial.number} is lost: its process ({owner}) has ended.")
            reaped.append(trial.number)
    return reaped
