"""Slots of a search and the trials that fill them: pure functions over trials.

A slot is one position in the search: the ``index``-th genome of a generation of an epoch. A trial
that carries a slot is one attempt at it. Which trial counts for a slot is decided by these rules:

1. The latest attempt counts.
2. If several trials carry the same slot and attempt number, the lowest-numbered one that has not
   failed counts. If all of them have failed, the attempt has failed.
3. COMPLETE and PRUNED finish a slot. A failed attempt is repeated once; after that the slot is
   finished without a result.
4. A trial whose process was killed, or that was withdrawn before it ran, is not counted as an
   attempt: its attempt is due again. An attempt that has cost several processes counts as failed,
   because its genome may be what kills them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from effllava_optuna.samplers._optuna_internals import FIXED_PARAMS, VOID

if TYPE_CHECKING:
    from optuna.study import Study

USER_KIND = "user"  # kind of a trial that a user enqueued
REPEATED = "repeated"  # number of the trial of a user that this one repeats
LOST, WITHDRAWN = "lost", "withdrawn"  # why a trial is void
_LAST_ATTEMPT = 1
_MAX_LOST_PROCESSES = 3  # that one attempt may cost


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """One position in the search; slots are filled in ascending order."""

    epoch: int
    generation: int
    index: int


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """One attempt at a slot; attempts are numbered from 0."""

    slot: Slot
    number: int


def attempt_of(trial: FrozenTrial) -> Attempt | None:
    """Return the attempt that a trial is; None if it has no slot (yet)."""
    attrs = trial.user_attrs
    # "attempt" is written last: a trial whose process was killed while writing has no slot.
    if "attempt" not in attrs or "index" not in attrs:
        return None
    return Attempt(Slot(attrs["epoch"], attrs["generation"], attrs["index"]), attrs["attempt"])


def slot_of(trial: FrozenTrial) -> Slot | None:
    """Return the slot of a trial; None if it has none (yet)."""
    attempt = attempt_of(trial)
    return None if attempt is None else attempt.slot


def is_enqueued_by_user(trial: FrozenTrial) -> bool:
    """Return whether a trial has no slot because a user chose (some of) its parameters."""
    if attempt_of(trial) is not None:
        return False
    return (
        FIXED_PARAMS in trial.system_attrs
        or bool(trial.params)
        or trial.user_attrs.get("kind") == USER_KIND
    )


def interrupted_user_trials(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials of users that are due again: rule 4, for trials without a slot."""
    repeats: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        if FIXED_PARAMS in trial.system_attrs and attempt_of(trial) is None:
            repeats.setdefault(trial.user_attrs.get(REPEATED, trial.number), []).append(trial)
    due = []
    for same in repeats.values():
        last = max(same, key=lambda trial: trial.number)
        lost = sum(trial.system_attrs.get(VOID) == LOST for trial in same)
        if last.state == TrialState.FAIL and VOID in last.system_attrs:
            due += [last] if lost < _MAX_LOST_PROCESSES else []
    return due


def trials_without_slot(trials: Iterable[FrozenTrial]) -> list[int]:
    """Return the numbers of the RUNNING trials that need a slot, ascending."""
    return sorted(
        trial.number
        for trial in trials
        if trial.state == TrialState.RUNNING
        and attempt_of(trial) is None
        and not is_enqueued_by_user(trial)
    )


def effective_trials(trials: Iterable[FrozenTrial]) -> dict[Slot, FrozenTrial]:
    """Return the one trial that counts for each slot, in the order of the slots."""
    best: dict[Slot, tuple[tuple[int, bool, int], FrozenTrial]] = {}
    lost: Counter[Attempt] = Counter()
    for trial in sorted(trials, key=lambda trial: trial.number):
        attempt = attempt_of(trial)
        if attempt is None:
            continue
        if trial.state == TrialState.FAIL and VOID in trial.system_attrs:
            lost[attempt] += trial.system_attrs[VOID] == LOST
            if lost[attempt] < _MAX_LOST_PROCESSES:
                continue
        precedence = (-attempt.number, trial.state == TrialState.FAIL, trial.number)
        if attempt.slot not in best or precedence < best[attempt.slot][0]:
            best[attempt.slot] = (precedence, trial)
    return {slot: best[slot][1] for slot in sorted(best)}


def trials_of_epoch(trials: Iterable[FrozenTrial], epoch: int | None) -> list[FrozenTrial]:
    """Select the trials of one epoch: reading the slots of all trials of a long study is slow."""
    return [trial for trial in trials if trial.user_attrs.get("epoch") == epoch]


def next_attempt_number(trial: FrozenTrial | None) -> int | None:
    """Return the number of the attempt that a slot is due for; None if it is not due.

    Args:
        trial: The effective trial of the slot; None if it has none.
    """
    if trial is None:
        return 0
    attempt = attempt_of(trial)
    if attempt is None or trial.state != TrialState.FAIL or attempt.number >= _LAST_ATTEMPT:
        return None
    return attempt.number + 1


def finishes_slot(trial: FrozenTrial) -> bool:
    """Return whether the slot of an effective trial is finished."""
    return trial.state.is_finished() and next_attempt_number(trial) is None


def finished_slots(trials: Iterable[FrozenTrial], epoch: int) -> set[Slot]:
    """Return the finished slots of an epoch."""
    effective = effective_trials(trials_of_epoch(trials, epoch))
    return {slot for slot, trial in effective.items() if finishes_slot(trial)}


def epoch_finished(
    trials: Iterable[FrozenTrial], epoch: int, *, population_size: int, generations: int
) -> bool:
    """Return whether every slot of the planned generations of an epoch is finished."""
    planned = itertools.product(range(generations), range(population_size))
    return {Slot(epoch, *position) for position in planned} <= finished_slots(trials, epoch)


def due_attempts(
    effective: Mapping[Slot, FrozenTrial], epoch: int, *, population_size: int
) -> list[Attempt]:
    """Return the attempts to start next: gaps of the unfinished generation, or a whole new one.

    The list is empty while a trial is queued or running for every unfinished slot: the next
    generation depends on all results of this one.

    Args:
        effective: The `effective_trials` of the epoch.
        epoch: The current epoch.
        population_size: Slots in a generation.
    """
    generation = 0
    while True:
        slots = [Slot(epoch, generation, index) for index in range(population_size)]
        numbers = [next_attempt_number(effective.get(slot)) for slot in slots]
        pairs = zip(slots, numbers, strict=True)
        attempts = [Attempt(slot, number) for slot, number in pairs if number is not None]
        if attempts or not all(finishes_slot(effective[slot]) for slot in slots):
            return attempts
        generation += 1


def is_due(effective: Mapping[Slot, FrozenTrial], attempt: Attempt) -> bool:
    """Return whether no trial carries an attempt yet, given the `effective_trials`."""
    return next_attempt_number(effective.get(attempt.slot)) == attempt.number


def first_trials(trials: Iterable[FrozenTrial]) -> dict[Attempt, int]:
    """Return the lowest number of the trials of each attempt that have not failed."""
    first: dict[Attempt, int] = {}
    for trial in trials:
        attempt = attempt_of(trial)
        if attempt is not None and trial.state != TrialState.FAIL:
            first[attempt] = min(trial.number, first.get(attempt, trial.number))
    return first


def earlier_duplicate(first: Mapping[Attempt, int], trial: FrozenTrial) -> int | None:
    """Return the number of an earlier trial of the same attempt, given the `first_trials`.

    None if there is no such trial before ``trial``.
    """
    attempt = attempt_of(trial)
    number = None if attempt is None else first.get(attempt)
    return None if number is None or number >= trial.number else number


def duplicate_of(study: Study, number: int) -> int | None:
    """Return the number of the other trial that already measures the slot of a trial.

    An objective calls this before an evaluation, and fails its trial if there is such a trial.

    Args:
        study: The study.
        number: Number of the trial that is about to be evaluated.

    Returns:
        None if trial ``number`` itself is the one that counts.
    """
    trials = study.get_trials(deepcopy=False)
    trial = trials[number]
    same_epoch = trials_of_epoch(trials, trial.user_attrs.get("epoch"))
    return earlier_duplicate(first_trials(same_epoch), trial)
