"""Ownership of running trials: which process evaluates a trial, and whether it is alive.

A process on the same host is looked up by its pid. A process on another host holds a *lease*: a
thread of it raises a number in the study, and it counts as alive for as long as a reader sees that
number change within `LEASE_SECONDS` of the reader's own clock. The clocks of two hosts are never
compared. Optuna's heartbeat works on relational storages only, and compares clocks.
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

from effllava_optuna.samplers import _optuna_internals
from effllava_optuna.samplers._optuna_internals import OWNER, storage_of, study_id_of
from effllava_optuna.samplers._slots import LOST, WITHDRAWN

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

GRACE_SECONDS = 30.0
LEASE_SECONDS = 120.0  # without a renewal
_RENEWAL_SECONDS = 15.0
_LEASE = "lease:"  # prefix of a system attribute of the study, one for each process

# Start times come from the wall clock, which may be adjusted a little between two readings.
_START_TOLERANCE_SECONDS = 1.0

_logger = logging.getLogger(__name__)


def this_process() -> str:
    """Return the name of this process: ``host:pid:start``, the start in seconds since 1970.

    The start time distinguishes it from a later process with the same pid.
    """
    return _name_of(os.getpid())


@functools.cache  # by pid: a forked child is another process
def _name_of(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}:{psutil.Process(pid).create_time():.2f}"


def owner_alive(owner: str, leases: Mapping[str, int] | None = None) -> bool | None:
    """Return whether a process is alive.

    Args:
        owner: Name of the process, as `this_process` returns it.
        leases: What `leases_of` has just read; needed for processes on other hosts.

    Returns:
        None if the process is on another host and its lease has not run out.
    """
    host, pid, start = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return None if leases is None or _lease_valid(owner, leases.get(owner, -1)) else False
    try:
        process = psutil.Process(int(pid))
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(abs(process.create_time() - float(start)) <= _START_TOLERANCE_SECONDS)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True  # the process exists, but belongs to another user


# By process: the number of its last renewal, and when this process first read that number.
_last_renewals: dict[str, tuple[int, float]] = {}


def _lease_valid(owner: str, renewal: int) -> bool:
    now = time.monotonic()
    last = _last_renewals.get(owner)
    if last is None or last[0] != renewal:
        _last_renewals[owner] = (renewal, now)
        return True
    return now - last[1] <= LEASE_SECONDS


def leases_of(study: Study) -> dict[str, int]:
    """Return the number of the last renewal of each process that has worked on a study."""
    attrs = storage_of(study).get_study_system_attrs(study_id_of(study))
    return {
        name.removeprefix(_LEASE): renewal
        for name, renewal in attrs.items()
        if name.startswith(_LEASE)
    }


# By storage: the (pid, study id) pairs that a thread renews.
_renewed: weakref.WeakKeyDictionary[BaseStorage, set[tuple[int, int]]] = (
    weakref.WeakKeyDictionary()
)


def renew_lease(study: Study) -> None:
    """Renew the lease of this process on a study from now on, in a daemon thread.

    The thread writes a number every 15 seconds until the process ends, the storage is deleted or a
    write fails. A study in memory needs no lease: no other process can read it.
    """
    storage, study_id = storage_of(study), study_id_of(study)
    lease = (os.getpid(), study_id)
    if isinstance(storage, InMemoryStorage) or lease in _renewed.setdefault(storage, set()):
        return
    _renewed[storage].add(lease)
    reference = weakref.ref(storage)
    name = _LEASE + this_process()

    def renew() -> None:
        renewal = 0
        while (storage := reference()) is not None:
            try:
                storage.set_study_system_attr(study_id, name, renewal)
            except Exception:  # the study or its database is gone: the lease runs out
                return
            del storage
            renewal += 1
            time.sleep(_RENEWAL_SECONDS)

    threading.Thread(target=renew, name="lease", daemon=True).start()


def write_owner(study: Study, trial: FrozenTrial) -> None:
    """Store this process as the owner of a trial."""
    renew_lease(study)
    _optuna_internals.set_system_attrs(study, trial, {OWNER: this_process()})


def release_trial(trial: Trial) -> None:
    """Mark the coming FAIL of a trial as an interruption: its slot is due again."""
    _optuna_internals.mark_void(trial.study, trial, WITHDRAWN)


def fail_lost_trials(
    study: Study,
    trials: Iterable[FrozenTrial] | None = None,
    *,
    grace_seconds: float = GRACE_SECONDS,
) -> list[int]:
    """Fail the RUNNING trials whose process has ended.

    Args:
        study: The study.
        trials: Trials of the study, if they were read already.
        grace_seconds: How long a trial may run without an owner. It has none between the moment
            it is taken from the queue and the moment the sampler sees it, and keeps none if its
            process is killed in between. Use zero only if no other worker is starting a trial.

    Returns:
        Numbers of the trials that were failed.
    """
    trials = study.get_trials(deepcopy=False) if trials is None else trials
    failed = []
    for trial in lost_trials(study, trials, grace_seconds=grace_seconds):
        if _optuna_internals.fail_trial(study, trial, void=LOST):
            owner = trial.system_attrs.get(OWNER)
            _logger.warning(f"Trial {trial.number} is lost: its process ({owner}) has ended.")
            failed.append(trial.number)
    return failed


def lost_trials(
    study: Study, trials: Iterable[FrozenTrial], *, grace_seconds: float = GRACE_SECONDS
) -> list[FrozenTrial]:
    """Return the RUNNING trials whose process has ended, without changing them."""
    overdue = datetime.now() - timedelta(seconds=grace_seconds)
    leases: dict[str, int] | None = None
    lost = []
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        owner = trial.system_attrs.get(OWNER)
        if owner is None:
            dead = trial.datetime_start is not None and trial.datetime_start <= overdue
        else:
            alive = owner_alive(owner)
            if alive is None:
                leases = leases_of(study) if leases is None else leases
                alive = owner_alive(owner, leases)
            dead = alive is False
        if dead:
            lost.append(trial)
    return lost
