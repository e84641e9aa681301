"""Ownership of running trials: which process evaluates a trial, and whether it is alive.

If the operating system knows the process, it decides (see `_process`). Any other process, in
another container or on another machine, holds a *lease*: a thread of it raises a number in the
study, and it counts as alive for as long as a reader sees that number change within
`LEASE_SECONDS`. The reader counts seconds in which it runs itself, so that processes which are
suspended together do not take each other for dead. The clocks of two machines are never compared.
Optuna's heartbeat works on relational storages only, and compares clocks.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from effllava_optuna.samplers import _optuna_internals
from effllava_optuna.samplers._optuna_internals import (
    FIXED_PARAMS,
    OWN_ATTRS,
    OWNER,
    storage_of,
    study_id_of,
)
from effllava_optuna.samplers._process import process_exists, this_process
from effllava_optuna.samplers._slots import (
    LOST,
    REPEATED,
    USER_KIND,
    WITHDRAWN,
    interrupted_user_trials,
)

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

GRACE_SECONDS = 30.0
LEASE_SECONDS = 120.0  # without a renewal
_RENEWAL_SECONDS = 15.0
_LEASE = "lease:"  # prefix of a system attribute of the study, one for each process
_MOST_SKEW = timedelta(days=2)  # between two clocks, in any two time zones

_logger = logging.getLogger(__name__)


class _RunningClock:
    """Counts the seconds in which this process runs.

    `time.monotonic` goes on while a process is stopped or frozen, on some systems also while the
    machine is suspended. So the time between two readings counts as that between two renewals at
    most, with as much again for a busy machine; the thread that renews the lease reads the clock.
    """

    _MOST_BETWEEN_READINGS = 2 * _RENEWAL_SECONDS

    def __init__(self) -> None:
        self._reading: tuple[float, float] | None = None  # replaced as one: threads share it

    def seconds(self) -> float:
        """Return the seconds since the first reading."""
        now = time.monotonic()
        seconds, last = self._reading or (0.0, now)
        seconds += min(now - last, self._MOST_BETWEEN_READINGS)
        self._reading = (seconds, now)
        return seconds


_clock = _RunningClock()


def owner_alive(owner: str, leases: Mapping[str, int] | None = None) -> bool | None:
    """Return whether a process is alive.

    Args:
        owner: Name of the process, as `this_process` returns it.
        leases: What `leases_of` has just read; needed for processes in other containers and on
            other machines.

    Returns:
        None if the operating system does not know the process and its lease has not run out.
    """
    exists = process_exists(owner)
    if exists is not None:
        return exists
    return None if leases is None or _lease_valid(owner, leases.get(owner, -1)) else False


# By process: the number of its last renewal, and when this process first read that number.
_last_renewals: dict[str, tuple[int, float]] = {}


def _lease_valid(owner: str, renewal: int) -> bool:
    now = _clock.seconds()
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

    The thread writes a number every 15 seconds until the process ends, the study is deleted, or
    nothing uses the storage any more. A write that fails is followed by the next: the database may
    be locked, or restarting. A study in memory needs no lease: no other process can read it.
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
            _clock.seconds()
            try:
                storage.set_study_system_attr(study_id, name, renewal)
            except KeyError:  # the study is deleted; another one may get its id
                _renewed[storage].discard(lease)
                return
            except Exception as error:  # each storage has exceptions of its own
                _logger.debug(f"The lease of this process was not renewed: {error}")
            del storage
            renewal += 1
            time.sleep(_RENEWAL_SECONDS)

    threading.Thread(target=renew, name="lease", daemon=True).start()


def write_owner(study: Study, trial: FrozenTrial) -> None:
    """Store this process as the owner of a trial."""
    renew_lease(study)
    _optuna_internals.set_system_attrs(study, trial, {OWNER: this_process()})


def owns_trial(trial: Trial) -> bool:
    """Return whether a trial is still stored as one of this process.

    It is not if its study was deleted: a database may give its id to a trial of another study.
    """
    try:
        stored = storage_of(trial.study).get_trial(_optuna_internals.trial_id_of(trial))
    except KeyError:
        return False
    return bool(stored.system_attrs.get(OWNER) == this_process())


def release_trial(trial: Trial) -> None:
    """Mark the coming FAIL of a trial as an interruption: it is due again.

    Does nothing if another process has ended the trial.
    """
    with suppress(UpdateFinishedTrialError):
        _optuna_internals.mark_void(trial.study, trial, WITHDRAWN)


def fail_lost_trials(
    study: Study,
    trials: Iterable[FrozenTrial] | None = None,
    *,
    grace_seconds: float = GRACE_SECONDS,
) -> list[int]:
    """Fail the RUNNING trials whose process has ended; those that users enqueued are due again.

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
    if failed or interrupted_user_trials(trials):
        _enqueue_again(study)
    return failed


def _enqueue_again(study: Study) -> None:
    """Enqueue the trials of users again that were interrupted.

    Two processes that start together may do it twice: then a policy is measured twice.
    """
    for trial in interrupted_user_trials(study.get_trials(deepcopy=False)):
        own = trial.system_attrs.get(OWN_ATTRS, {})
        if trial.user_attrs.get("kind") != USER_KIND:  # no sampler has seen it
            own = trial.user_attrs
        origin = trial.user_attrs.get(REPEATED, trial.number)
        study.enqueue_trial(trial.system_attrs[FIXED_PARAMS], user_attrs={**own, REPEATED: origin})


# By study and trial: when this process first read that the trial runs without an owner.
_ownerless: weakref.WeakKeyDictionary[BaseStorage, dict[tuple[int, int], float]] = (
    weakref.WeakKeyDictionary()
)


def lost_trials(
    study: Study, trials: Iterable[FrozenTrial], *, grace_seconds: float = GRACE_SECONDS
) -> list[FrozenTrial]:
    """Return the RUNNING trials whose process has ended, without changing them."""
    leases: dict[str, int] | None = None
    lost = []
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        owner = trial.system_attrs.get(OWNER)
        if owner is None:
            dead = _ownerless_seconds(study, trial) >= grace_seconds
        else:
            alive = owner_alive(owner)
            if alive is None:
                leases = leases_of(study) if leases is None else leases
                alive = owner_alive(owner, leases)
            dead = alive is False
        if dead:
            lost.append(trial)
    return lost


def _ownerless_seconds(study: Study, trial: FrozenTrial) -> float:
    """Return how long this process has known that a trial runs without an owner.

    The start of a trial is a time of the clock, in the time zone, of another machine perhaps.
    """
    if trial.datetime_start is not None and trial.datetime_start < datetime.now() - _MOST_SKEW:
        return float("inf")
    now = _clock.seconds()
    first = _ownerless.setdefault(storage_of(study), {})
    return now - first.setdefault((study_id_of(study), trial.number), now)
