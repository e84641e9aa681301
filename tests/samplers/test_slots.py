from __future__ import annotations

from copy import copy
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from effllava_optuna.samplers import Slot, counted, epoch_finished, finished_slots, slot_of
from effllava_optuna.samplers._slots import (
    Ticket,
    due,
    firsts,
    is_foreign,
    is_open,
    of_epoch,
    seekers,
    twin_of,
)

COMPLETE, FAIL, PRUNED = TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED
RUNNING, WAITING = TrialState.RUNNING, TrialState.WAITING


def trial_of(
    state: TrialState, index: int, generation: int = 0, *, epoch: int = 0, attempt: int = 0
) -> FrozenTrial:
    place = {"epoch": epoch, "generation": generation, "index": index, "attempt": attempt}
    return plain(state, user_attrs=place)


def plain(state: TrialState, **fields: Any) -> FrozenTrial:
    return create_trial(state=state, values=[0.0] if state == COMPLETE else None, **fields)


def numbered(*trials: FrozenTrial) -> list[FrozenTrial]:
    for number, trial in enumerate(trials):
        trial.number = number
    return list(trials)


def due_now(*trials: FrozenTrial, epoch: int = 0) -> list[tuple[int, int, int]]:
    table = counted(of_epoch(numbered(*trials), epoch))
    tickets = due(table, epoch, population_size=2)
    assert all(ticket.slot.epoch == epoch for ticket in tickets)
    return [(ticket.slot.generation, ticket.slot.index, ticket.attempt) for ticket in tickets]


def test_an_empty_epoch_starts_with_generation_0() -> None:
    assert due_now() == [(0, 0, 0), (0, 1, 0)]
    assert due_now(trial_of(COMPLETE, 0), trial_of(COMPLETE, 1), epoch=1) == due_now()


@pytest.mark.parametrize("state", [COMPLETE, PRUNED])
def test_a_finished_generation_makes_the_next_one_due(state: TrialState) -> None:
    assert due_now(trial_of(COMPLETE, 0), trial_of(state, 1)) == [(1, 0, 0), (1, 1, 0)]


@pytest.mark.parametrize("state", [RUNNING, WAITING])
def test_nothing_is_due_while_somebody_works(state: TrialState) -> None:
    assert due_now(trial_of(COMPLETE, 0), trial_of(state, 1)) == []


def test_a_gap_is_due_although_others_run() -> None:
    assert due_now(trial_of(RUNNING, 1)) == [(0, 0, 0)]


def test_a_failed_slot_is_due_once_more_and_then_finished() -> None:
    first, second = trial_of(FAIL, 1), trial_of(FAIL, 1, attempt=1)
    assert due_now(trial_of(RUNNING, 0), first) == [(0, 1, 1)]
    assert due_now(trial_of(COMPLETE, 0), first, second) == [(1, 0, 0), (1, 1, 0)]


def test_the_lowest_number_counts_unless_it_failed() -> None:
    trials = numbered(trial_of(FAIL, 0), trial_of(COMPLETE, 0), trial_of(RUNNING, 0))
    assert counted(trials)[Slot(0, 0, 0)].number == 1
    first = firsts(trials)
    assert [twin_of(first, trial) for trial in trials] == [None, None, 1]


def test_a_lost_trial_is_no_attempt_until_it_has_cost_three_processes() -> None:
    lost, withdrawn = trial_of(FAIL, 0), trial_of(FAIL, 1)
    lost.system_attrs["void"], withdrawn.system_attrs["void"] = "lost", "withdrawn"
    both_open = [(0, 0, 0), (0, 1, 0)]
    assert due_now(lost, withdrawn) == both_open
    assert due_now(*[copy(t) for t in [lost, withdrawn] * 2]) == both_open
    assert due_now(*[copy(t) for t in [lost, withdrawn] * 3]) == [(0, 0, 1), (0, 1, 0)]


def test_a_running_twin_holds_the_slot_open() -> None:
    assert due_now(trial_of(RUNNING, 0), trial_of(COMPLETE, 0), trial_of(COMPLETE, 1)) == []


def test_a_ticket_is_open_until_it_is_taken() -> None:
    trials = numbered(trial_of(FAIL, 0), trial_of(WAITING, 1))
    tickets = [Ticket(Slot(0, 0, i), attempt) for i, attempt in ((0, 0), (0, 1), (1, 0), (2, 0))]
    assert [is_open(counted(trials), ticket) for ticket in tickets] == [False, True, False, True]


def test_an_epoch_is_finished_with_all_its_planned_slots() -> None:
    done = numbered(*(trial_of(COMPLETE, i, g) for g in range(2) for i in range(3)))
    assert epoch_finished(done, 0, population_size=3, generations=2)
    assert not epoch_finished(done, 0, population_size=3, generations=3)
    assert not epoch_finished(done, 1, population_size=3, generations=2)
    assert not epoch_finished(done[:-1], 0, population_size=3, generations=2)
    assert len(finished_slots(done, 0)) == 6


def test_who_was_killed_while_writing_holds_nothing() -> None:
    half = plain(RUNNING, user_attrs={"epoch": 0, "generation": 0, "index": 0})
    assert slot_of(half) is None
    assert seekers(numbered(trial_of(RUNNING, 0), half)) == [1]


def test_enqueued_trials_are_foreign_and_seek_nothing() -> None:
    foreign = [
        plain(RUNNING, system_attrs={"fixed_params": {}}),
        plain(RUNNING, user_attrs={"kind": "foreign"}),
    ]
    assert all(is_foreign(trial) for trial in foreign)
    assert seekers(numbered(*foreign, plain(RUNNING), plain(FAIL))) == [2]
