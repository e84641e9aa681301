from __future__ import annotations

from copy import copy
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from effllava_optuna.samplers import effective_trials, epoch_finished, slot_of
from effllava_optuna.samplers._slots import (
    Attempt,
    Slot,
    due_attempts,
    earlier_duplicate,
    finished_slots,
    first_trials,
    is_due,
    is_enqueued_by_user,
    trials_of_epoch,
    trials_without_slot,
)

COMPLETE, FAIL, PRUNED = TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED
RUNNING, WAITING = TrialState.RUNNING, TrialState.WAITING


def trial_of(
    state: TrialState, index: int, generation: int = 0, *, epoch: int = 0, attempt: int = 0
) -> FrozenTrial:
    attrs = {"epoch": epoch, "generation": generation, "index": index, "attempt": attempt}
    return plain(state, user_attrs=attrs)


def plain(state: TrialState, **fields: Any) -> FrozenTrial:
    return create_trial(state=state, values=[0.0] if state == COMPLETE else None, **fields)


def numbered(*trials: FrozenTrial) -> list[FrozenTrial]:
    for number, trial in enumerate(trials):
        trial.number = number
    return list(trials)


def due_now(*trials: FrozenTrial, epoch: int = 0) -> list[tuple[int, int, int]]:
    effective = effective_trials(trials_of_epoch(numbered(*trials), epoch))
    attempts = due_attempts(effective, epoch, population_size=2)
    assert all(attempt.slot.epoch == epoch for attempt in attempts)
    return [(attempt.slot.generation, attempt.slot.index, attempt.number) for attempt in attempts]


def test_an_empty_epoch_starts_with_generation_0() -> None:
    assert due_now() == [(0, 0, 0), (0, 1, 0)]
    assert due_now(trial_of(COMPLETE, 0), trial_of(COMPLETE, 1), epoch=1) == due_now()


@pytest.mark.parametrize("state", [COMPLETE, PRUNED])
def test_a_finished_generation_makes_the_next_one_due(state: TrialState) -> None:
    assert due_now(trial_of(COMPLETE, 0), trial_of(state, 1)) == [(1, 0, 0), (1, 1, 0)]


@pytest.mark.parametrize("state", [RUNNING, WAITING])
def test_nothing_is_due_while_a_slot_is_unfinished(state: TrialState) -> None:
    assert due_now(trial_of(COMPLETE, 0), trial_of(state, 1)) == []


def test_a_gap_is_due_although_others_run() -> None:
    assert due_now(trial_of(RUNNING, 1)) == [(0, 0, 0)]


def test_a_failed_slot_is_due_once_more_and_then_finished() -> None:
    first, second = trial_of(FAIL, 1), trial_of(FAIL, 1, attempt=1)
    assert due_now(trial_of(RUNNING, 0), first) == [(0, 1, 1)]
    assert due_now(trial_of(COMPLETE, 0), first, second) == [(1, 0, 0), (1, 1, 0)]


def test_the_lowest_number_counts_unless_it_failed() -> None:
    trials = numbered(trial_of(FAIL, 0), trial_of(COMPLETE, 0), trial_of(RUNNING, 0))
    assert effective_trials(trials)[Slot(0, 0, 0)].number == 1
    first = first_trials(trials)
    assert [earlier_duplicate(first, trial) for trial in trials] == [None, None, 1]


def test_a_lost_trial_counts_as_an_attempt_after_three_lost_processes() -> None:
    lost, withdrawn = trial_of(FAIL, 0), trial_of(FAIL, 1)
    lost.system_attrs["void"], withdrawn.system_attrs["void"] = "lost", "withdrawn"
    both_due = [(0, 0, 0), (0, 1, 0)]
    assert due_now(lost, withdrawn) == both_due
    assert due_now(*[copy(t) for t in [lost, withdrawn] * 2]) == both_due
    assert due_now(*[copy(t) for t in [lost, withdrawn] * 3]) == [(0, 0, 1), (0, 1, 0)]


def test_a_running_duplicate_keeps_the_slot_unfinished() -> None:
    assert due_now(trial_of(RUNNING, 0), trial_of(COMPLETE, 0), trial_of(COMPLETE, 1)) == []


def test_an_attempt_is_due_until_a_trial_carries_it() -> None:
    trials = numbered(trial_of(FAIL, 0), trial_of(WAITING, 1))
    attempts = [Attempt(Slot(0, 0, i), n) for i, n in ((0, 0), (0, 1), (1, 0), (2, 0))]
    assert [is_due(effective_trials(trials), attempt) for attempt in attempts] == [
        False,
        True,
        False,
        True,
    ]


def test_an_epoch_is_finished_with_all_its_planned_slots() -> None:
    done = numbered(*(trial_of(COMPLETE, i, g) for g in range(2) for i in range(3)))
    assert epoch_finished(done, 0, population_size=3, generations=2)
    assert not epoch_finished(done, 0, population_size=3, generations=3)
    assert not epoch_finished(done, 1, population_size=3, generations=2)
    assert not epoch_finished(done[:-1], 0, population_size=3, generations=2)
    assert len(finished_slots(done, 0)) == 6


def test_a_trial_whose_attributes_are_incomplete_has_no_slot() -> None:
    incomplete = plain(RUNNING, user_attrs={"epoch": 0, "generation": 0, "index": 0})
    assert slot_of(incomplete) is None
    assert trials_without_slot(numbered(trial_of(RUNNING, 0), incomplete)) == [1]


def test_trials_that_a_user_enqueued_need_no_slot() -> None:
    enqueued = [
        plain(RUNNING, system_attrs={"fixed_params": {}}),
        plain(RUNNING, user_attrs={"kind": "user"}),
    ]
    assert all(is_enqueued_by_user(trial) for trial in enqueued)
    assert trials_without_slot(numbered(*enqueued, plain(RUNNING), plain(FAIL))) == [2]
