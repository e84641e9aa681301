"""Handing out slots: the one place where slots are written into a study.

Two kinds of trial come to hold a slot. Most are *templates*: WAITING trials, created with
everything in one transaction, that ``Study.ask`` hands out. The others are trials that Optuna
created because nothing was waiting: such a *seeker* is given its slot afterwards, in several
transactions. That is kept safe without a lock that all storages would have to offer:

* The lowest-numbered seeker leads; the others wait. Numbers grow, so a leader stays the leader
  until it holds a slot or has died (`reap`), and there is never a second one.
* The leader writes what is due as templates, leaves one slot for every other seeker, and takes
  the first slot itself at the very end: only then does the next seeker lead.
* Where nothing is due but templates wait, a seeker takes one over: it moves the template to
  RUNNING (the step by which ``ask`` makes sure that only one worker gets it), takes its slot and
  then fails the template. Whoever is killed in between leaves a failed attempt, and the slot is
  tried again.
* `Desk.fill` writes without being a seeker. It leaves the work to a leader if there is one; should
  both start at once, the lower number counts (see `_slots`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from effllava_optuna.samplers import _compat
from effllava_optuna.samplers._breeding import Proposal, proposal_of
from effllava_optuna.samplers._owner import reap, reap_among
from effllava_optuna.samplers._slots import (
    WITHDRAWN,
    Ticket,
    counted,
    due,
    firsts,
    is_open,
    of_epoch,
    seekers,
    ticket_of,
    twin_of,
)

if TYPE_CHECKING:
    from optuna.study import Study

    from effllava_optuna.samplers._breeding import Breeder
    from effllava_optuna.samplers._space import SpaceProvider, SpaceView

# Seconds between two looks at the storage; on SQLite nobody else may write during one.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.3
_COMPLAIN_AFTER = 60.0  # seconds of waiting

_logger = logging.getLogger(__name__)

# Threads of one process write one after the other, whichever sampler object they use.
_WRITING = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Order:
    ticket: Ticket
    proposal: Proposal

    def user_attrs(self, view: SpaceView) -> dict[str, Any]:
        slot, origin = self.ticket.slot, self.proposal.origin
        return {
            **view.stamp,
            **view.describe(self.proposal.params),
            "kind": self.proposal.kind,
            **({} if origin is None else {"origin": origin}),
            "epoch": slot.epoch,
            "generation": slot.generation,
            "index": slot.index,
            "attempt": self.ticket.attempt,  # the last one: it makes the slot taken
        }

    def system_attrs(self) -> dict[str, Any]:
        violation = self.proposal.violation
        return {} if violation is None else {_compat.CONSTRAINTS: [violation]}


@dataclass(frozen=True, slots=True)
class Desk:
    """Writes what is due into a study.

    Args:
        space: Tells the space of the current epoch.
        breeder: Proposes generations.
    """

    space: SpaceProvider
    breeder: Breeder

    def fill(self, study: Study) -> int:
        """Write all that is due as templates, and return how many were written."""
        reap(study)
        trials = study.get_trials(deepcopy=False)
        if seekers(trials):
            return 0
        view = self.space(study)  # after the look at the trials: see `SpaceProvider`
        with _WRITING:
            return self._write(study, view, self._orders(study, view, trials))

    def serve(self, study: Study, trial: FrozenTrial) -> dict[str, int]:
        """Give a seeker a slot, waiting for one if need be, and return its parameters.

        Raises:
            RuntimeError: Somebody has ended the trial meanwhile.
        """
        began, pause, complained = time.monotonic(), _SHORTEST_PAUSE, False
        while True:
            trials = study.get_trials(deepcopy=False)
            if reap_among(study, trials):
                continue
            if trials[trial.number].state.is_finished():
                raise RuntimeError(f"Trial {trial.number} was ended while it waited for a slot.")
            if seekers(trials)[0] == trial.number:
                params = self._lead(study, trial, trials)
                if params is not None:
                    return params
            if not complained and time.monotonic() - began > _COMPLAIN_AFTER:
                running = [t.number for t in trials if t.state == TrialState.RUNNING]
                _logger.warning(
                    f"Trial {trial.number} waits for others to end: {running}. Where one of them "
                    "was asked for, tell its result; where its worker is lost, fail it."
                )
                complained = True
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _lead(
        self, study: Study, trial: FrozenTrial, trials: Sequence[FrozenTrial]
    ) -> dict[str, int] | None:
        view = self.space(study)  # after the look at the trials: see `SpaceProvider`
        with _WRITING:
            orders = self._orders(study, view, trials)
            if not orders:
                return self._take_over(study, trial, trials, view)
            mine, rest = orders[0], orders[1:]
            others = len(seekers(study.get_trials(deepcopy=False))) - 1
            self._write(study, view, rest[: max(0, len(rest) - others)])
            now = of_epoch(study.get_trials(deepcopy=False), view.epoch)
            if not is_open(counted(now), mine.ticket):
                return None  # `fill` was faster
            return self._claim(study, trial, view, mine)

    def _orders(
        self, study: Study, view: SpaceView, trials: Sequence[FrozenTrial]
    ) -> list[_Order]:
        """Add its genome to every ticket that is due; all are of one generation."""
        size = self.breeder.population_size
        table = counted(of_epoch(trials, view.epoch))
        tickets = due(table, view.epoch, population_size=size)
        if not tickets:
            return []
        generation = tickets[0].slot.generation
        past = [
            trial
            for slot, trial in table.items()
            if slot.generation < generation
            and trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        ]
        fresh = self.breeder.generation(view, generation, past, study.directions)

        def proposal(ticket: Ticket) -> Proposal:
            return proposal_of(table[ticket.slot]) if ticket.attempt else fresh[ticket.slot.index]

        return [_Order(ticket, proposal(ticket)) for ticket in tickets]

    def _write(self, study: Study, view: SpaceView, orders: Sequence[_Order]) -> int:
        table = counted(of_epoch(study.get_trials(deepcopy=False), view.epoch))
        written = {
            _compat.create_waiting(
                study,
                params=order.proposal.params,
                distributions=view.distributions,
                user_attrs=order.user_attrs(view),
                system_attrs=order.system_attrs(),
            )
            for order in orders
            if is_open(table, order.ticket)
        }
        trials = study.get_trials(deepcopy=False)
        first = firsts(of_epoch(trials, view.epoch))
        for trial in trials:
            if trial.state != TrialState.WAITING:
                continue
            mine = _compat.trial_id(trial) in written
            ticket = ticket_of(trial)
            stale = ticket is not None and ticket.slot.epoch < view.epoch
            if stale or (mine and twin_of(first, trial) is not None):
                _withdraw(study, trial)
        return len(written)

    def _take_over(
        self, study: Study, trial: FrozenTrial, trials: Sequence[FrozenTrial], view: SpaceView
    ) -> dict[str, int] | None:
        for template in trials:
            ticket = ticket_of(template)
            if template.state != TrialState.WAITING or ticket is None:
                continue
            if ticket.slot.epoch != view.epoch or not _compat.start(study, template):
                continue
            params = self._claim(study, trial, view, _Order(ticket, proposal_of(template)))
            _compat.fail(study, template, void=WITHDRAWN)
            return params
        return None

    def _claim(
        self, study: Study, trial: FrozenTrial, view: SpaceView, order: _Order
    ) -> dict[str, int]:
        params = dict(order.proposal.params)
        _compat.set_system_attrs(study, trial, {_compat.GENOME: params, **order.system_attrs()})
        _compat.set_user_attrs(study, trial, order.user_attrs(view))
        return params


def _withdraw(study: Study, trial: FrozenTrial) -> None:
    """Fail a template unless a worker has it already."""
    if _compat.start(study, trial):
        _compat.fail(study, trial, void=WITHDRAWN)
