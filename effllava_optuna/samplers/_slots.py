"""Which slots there are, which are finished and which are due: pure functions over trials.

A slot is one place in the search: the ``index``-th genome of a generation of an epoch. The trials
that carry a slot are attempts at it; what counts is told here and nowhere else:

1. The latest attempt counts.
2. Of several trials with one slot and attempt, the lowest number that has not failed counts; where
   all of them have failed, the attempt has.
3. COMPLETE and PRUNED finish a slot. A failed attempt is repeated once; after that the slot is
   finished without a result.
4. A trial whose process was killed, or that was withdrawn before it ran, is no attempt at all: its
   ticket is open again. Only a ticket that has cost several processes counts as failed, as its
   genome may be what kills them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from effllava_optuna.samplers._compat import FIXED_PARAMS, VOID

if TYPE_CHECKING:
    from optuna.study import Study

FOREIGN = "foreign"
LAST_ATTEMPT = 1
LOST, WITHDRAWN = "lost", "withdrawn"  # why a trial is void
_MOST_LOST = 3  # processes that may die over one ticket


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """One place in the search, in the order in which the search fills them."""

    epoch: int
    generation: int
    index: int


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """The right to try one slot."""

    slot: Slot
    attempt: int


def ticket_of(trial: FrozenTrial) -> Ticket | None:
    """Read which attempt at which slot a trial is; None where it holds no slot (yet)."""
    attrs = trial.user_attrs
    # `attempt` is written last: whoever was killed while writing holds nothing.
    if "attempt" not in attrs or "index" not in attrs:
        return None
    return Ticket(Slot(attrs["epoch"], attrs["generation"], attrs["index"]), attrs["attempt"])


def slot_of(trial: FrozenTrial) -> Slot | None:
    """Read the slot of a trial; None where it holds none (yet)."""
    ticket = ticket_of(trial)
    return None if ticket is None else ticket.slot


def is_foreign(trial: FrozenTrial) -> bool:
    """Tell whether somebody else chose (some of) the parameters of a trial without a slot."""
    if ticket_of(trial) is not None:
        return False
    return (
        FIXED_PARAMS in trial.system_attrs
        or bool(trial.params)
        or trial.user_attrs.get("kind") == FOREIGN
    )


def seekers(trials: Iterable[FrozenTrial]) -> list[int]:
    """List the RUNNING trials that still look for a slot by number; the first one leads."""
    return sorted(
        trial.number
        for trial in trials
        if trial.state == TrialState.RUNNING and ticket_of(trial) is None and not is_foreign(trial)
    )


def counted(trials: Iterable[FrozenTrial]) -> dict[Slot, FrozenTrial]:
    """Give each slot the one trial that counts for it, in the order of the slots."""
    best: dict[Slot, tuple[tuple[int, bool, int], FrozenTrial]] = {}
    lost: Counter[Ticket] = Counter()
    for trial in sorted(trials, key=lambda trial: trial.number):
        ticket = ticket_of(trial)
        if ticket is None:
            continue
        if trial.state == TrialState.FAIL and VOID in trial.system_attrs:
            lost[ticket] += trial.system_attrs[VOID] == LOST
            if lost[ticket] < _MOST_LOST:
                continue
        merit = (-ticket.attempt, trial.state == TrialState.FAIL, trial.number)
        if ticket.slot not in best or merit < best[ticket.slot][0]:
            best[ticket.slot] = (merit, trial)
    return {slot: best[slot][1] for slot in sorted(best)}


def of_epoch(trials: Iterable[FrozenTrial], epoch: int | None) -> list[FrozenTrial]:
    """Keep the trials of one epoch: a long study has many others, and each look at them costs."""
    return [trial for trial in trials if trial.user_attrs.get("epoch") == epoch]


def next_attempt(trial: FrozenTrial | None) -> int | None:
    """Tell which attempt a slot is due for, given the trial that counts for it; None for none."""
    if trial is None:
        return 0
    ticket = ticket_of(trial)
    if ticket is None or trial.state != TrialState.FAIL or ticket.attempt >= LAST_ATTEMPT:
        return None
    return ticket.attempt + 1


def is_finished(trial: FrozenTrial) -> bool:
    """Tell whether the slot is finished for which a trial counts."""
    return trial.state.is_finished() and next_attempt(trial) is None


def finished_slots(trials: Iterable[FrozenTrial], epoch: int) -> set[Slot]:
    """List the finished slots of an epoch."""
    table = counted(of_epoch(trials, epoch)).items()
    return {slot for slot, trial in table if is_finished(trial)}


def epoch_finished(
    trials: Iterable[FrozenTrial], epoch: int, *, population_size: int, generations: int
) -> bool:
    """Tell whether every slot of the planned generations of an epoch is finished."""
    plan = itertools.product(range(generations), range(population_size))
    return {Slot(epoch, *place) for place in plan} <= finished_slots(trials, epoch)


def due(table: Mapping[Slot, FrozenTrial], epoch: int, *, population_size: int) -> list[Ticket]:
    """List what must be tried now: the gaps of the unfinished generation, or a whole new one.

    Empty while every slot of the unfinished generation is in somebody's hands: nothing of the next
    generation is known before this one is finished.

    Args:
        table: The trials of the epoch that are `counted`.
        epoch: Which one is open.
        population_size: Slots in a generation.
    """
    generation = 0
    while True:
        slots = [Slot(epoch, generation, index) for index in range(population_size)]
        attempts = [next_attempt(table.get(slot)) for slot in slots]
        pairs = zip(slots, attempts, strict=True)
        tickets = [Ticket(slot, attempt) for slot, attempt in pairs if attempt is not None]
        if tickets or not all(is_finished(table[slot]) for slot in slots):
            return tickets
        generation += 1


def is_open(table: Mapping[Slot, FrozenTrial], ticket: Ticket) -> bool:
    """Tell whether nobody has taken a ticket yet, given the trials that are `counted`."""
    return next_attempt(table.get(ticket.slot)) == ticket.attempt


def firsts(trials: Iterable[FrozenTrial]) -> dict[Ticket, int]:
    """Give each ticket the lowest-numbered trial that holds it and has not failed."""
    found: dict[Ticket, int] = {}
    for trial in trials:
        ticket = ticket_of(trial)
        if ticket is not None and trial.state != TrialState.FAIL:
            found[ticket] = min(trial.number, found.get(ticket, trial.number))
    return found


def twin_of(firsts: Mapping[Ticket, int], trial: FrozenTrial) -> int | None:
    """Find the trial that counts instead of one that has the same ticket; see `firsts`.

    Returns:
        Its number, or None where there is none before ``trial``.
    """
    ticket = ticket_of(trial)
    first = None if ticket is None else firsts.get(ticket)
    return None if first is None or first >= trial.number else first


def duplicate_of(study: Study, number: int) -> int | None:
    """Ask before an evaluation whether another trial already measures this slot.

    Args:
        study: The study.
        number: The trial that is about to be evaluated.

    Returns:
        The number of the trial that counts instead; the asking one should then fail. None where
        the asking trial is the one that counts.
    """
    trials = study.get_trials(deepcopy=False)
    mine = trials[number]
    return twin_of(firsts(of_epoch(trials, mine.user_attrs.get("epoch"))), mine)
