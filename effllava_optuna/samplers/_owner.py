"""Who evaluates a trial, and whether that process still lives.

A process on the same host is looked up. One on another host is known by its *pulse*: a number in
the study that a thread of it raises. It holds a lease on what it owns for as long as its pulse is
seen to change, by the clock of whoever looks: no two clocks are compared. Optuna's heartbeat works
on relational storages only, and compares clocks.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import psutil
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from effllava_optuna.samplers import _compat
from effllava_optuna.samplers._slots import LOST, WITHDRAWN

if TYPE_CHECKING:
    from optuna.study import Study

GRACE_SECONDS = 30.0
LEASE_SECONDS = 120.0  # without a new pulse
_PULSE_SECONDS = 15.0
_PULSE = "pulse:"  # a study's system attribute for each process

# Start times come from the wall clock, which may be adjusted a little between two looks.
_SAME_START_SECONDS = 1.0

_logger = logging.getLogger(__name__)


def this_process() -> str:
    """Name this process: ``host:pid:start``, the start in seconds since 1970.

    The start time tells it from a later process that was given the same pid.
    """
    return _name_of(os.getpid())


@functools.cache  # by pid: a forked child is another process
def _name_of(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}:{psutil.Process(pid).create_time():.2f}"


def owner_alive(owner: str, pulses: Mapping[str, int] | None = None) -> bool | None:
    """Tell whether a process lives.

    Args:
        owner: As `this_process` names it.
        pulses: What `pulses_of` read just now; needed for processes on other hosts.

    Returns:
        None where the process is on another host and its lease has not run out.
    """
    host, pid, start = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return None if pulses is None or _leased(owner, pulses.get(owner, -1)) else False
    try:
        process = psutil.Process(int(pid))
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(abs(process.create_time() - float(start)) <= _SAME_START_SECONDS)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True  # it exists, but is not ours to look at


_seen: dict[str, tuple[int, float]] = {}  # by process: its last pulse, and when it was new here


def _leased(owner: str, pulse: int) -> bool:
    now = time.monotonic()
    known = _seen.get(owner)
    if known is None or known[0] != pulse:
        _seen[owner] = (pulse, now)
        return True
    return now - known[1] <= LEASE_SECONDS


def pulses_of(study: Study) -> dict[str, int]:
    """Read the last pulse of every process that has worked on a study."""
    attrs = study._storage.get_study_system_attrs(study._study_id)
    return {
        name.removeprefix(_PULSE): pulse
        for name, pulse in attrs.items()
        if name.startswith(_PULSE)
    }


_beating: weakref.WeakKeyDictionary[BaseStorage, set[tuple[int, int]]] = (
    weakref.WeakKeyDictionary()
)


def beat(study: Study) -> None:
    """Show from now on that this process lives, to whoever shares the study.

    A daemon thread writes a number every quarter of a minute, until the process ends, the storage
    is gone, or a write fails. A study in memory has nobody to show it to.
    """
    storage, place = study._storage, (os.getpid(), study._study_id)
    if isinstance(storage, InMemoryStorage) or place in _beating.setdefault(storage, set()):
        return
    _beating[storage].add(place)
    held = weakref.ref(storage)
    study_id, name = study._study_id, _PULSE + this_process()

    def go_on() -> None:
        pulse = 0
        while (storage := held()) is not None:
            try:
                storage.set_study_system_attr(study_id, name, pulse)
            except Exception:  # the study or its database is gone; others see the lease run out
                return
            del storage
            pulse += 1
            time.sleep(_PULSE_SECONDS)

    threading.Thread(target=go_on, name="pulse", daemon=True).start()


def sign(study: Study, trial: FrozenTrial) -> None:
    """Write this process down as the owner of a trial."""
    beat(study)
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
    reaped = []
    for trial in lost_among(study, trials, grace_seconds=grace_seconds):
        if _compat.fail(study, trial, void=LOST):
            owner = trial.system_attrs.get(_compat.OWNER)
            _logger.warning(f"Trial {trial.number} is lost: its process ({owner}) has ended.")
            reaped.append(trial.number)
    return reaped


def lost_among(
    study: Study, trials: Iterable[FrozenTrial], *, grace_seconds: float = GRACE_SECONDS
) -> list[FrozenTrial]:
    """Give the RUNNING trials that nobody evaluates any more; nothing is changed."""
    overdue = datetime.now() - timedelta(seconds=grace_seconds)
    pulses: dict[str, int] | None = None
    lost = []
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        owner = trial.system_attrs.get(_compat.OWNER)
        if owner is None:
            dead = trial.datetime_start is not None and trial.datetime_start <= overdue
        else:
            alive = owner_alive(owner)
            if alive is None:
                pulses = pulses_of(study) if pulses is None else pulses
                alive = owner_alive(owner, pulses)
            dead = alive is False
        if dead:
            lost.append(trial)
    return lost
