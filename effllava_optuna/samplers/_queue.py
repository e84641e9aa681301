"""Writing slots into a study: the queue of WAITING trials, and slots for trials without one.

There are two ways in which a trial gets its slot. Most trials are *queued*: created as WAITING
with all attributes in one transaction, and handed out by ``Study.ask``. If none is waiting, Optuna
creates a trial *without a slot*, which gets one afterwards in several transactions. Not all
storages offer a lock, so that is made safe by an order of the workers:

* The lowest-numbered trial without a slot leads; the others wait. Numbers grow, so a leader stays
  the leader until it has a slot or its process has died (`fail_lost_trials`), and there are never
  two leaders.
* The leader queues the due attempts, leaves one for every other trial without a slot, and takes
  the first attempt itself at the very end: only then does the next trial lead.
* If nothing is due but trials are queued, the leader takes one over: it sets the queued trial to
  RUNNING (the step by which ``ask`` ensures that only one worker gets it), takes its slot, and
  then fails the queued trial. If the process is killed in between, a failed attempt remains, and
  the slot is tried again.
* `SlotQueue.fill` queues trials without being a leader. It does nothing if there is a leader; if
  both start at the same time, the lower number counts (see `_slots`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from effllava_optuna.samplers import _optuna_internals
from effllava_optuna.samplers._lease import fail_lost_trials
from effllava_optuna.samplers._proposals._history import (
    VECTOR,
    ProposedGenome,
    proposed_genome_of,
)
from effllava_optuna.samplers._slots import (
    WITHDRAWN,
    Attempt,
    attempt_of,
    due_attempts,
    earlier_duplicate,
    effective_trials,
    first_trials,
    is_due,
    trials_of_epoch,
    trials_without_slot,
)

if TYPE_CHECKING:
    from optuna.study import Study

    from effllava_optuna.samplers._level_grid import SpaceProvider, SpaceView
    from effllava_optuna.samplers._proposals._generation_strategy import GenerationStrategy

# Seconds between two reads of the storage: a read on SQLite keeps all others from writing.
_MIN_PAUSE, _MAX_PAUSE = 0.02, 0.3
_WARN_AFTER_SECONDS = 60.0

_logger = logging.getLogger(__name__)

# Threads of one process write one after the other, even if they use different sampler objects.
_WRITE_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class _QueuedAttempt:
    """An attempt with its genome, and the attributes that a trial of it gets."""

    attempt: Attempt
    proposal: ProposedGenome

    def user_attrs(self, view: SpaceView) -> dict[str, Any]:
        slot, origin, vector = self.attempt.slot, self.proposal.origin, self.proposal.vector
        return {
            **view.stamp,
            **view.describe(self.proposal.params),
            "kind": self.proposal.kind,
            **({} if origin is None else {"origin": origin}),
            **({} if vector is None else {VECTOR: list(vector)}),
            "epoch": slot.epoch,
            "generation": slot.generation,
            "index": slot.index,
            "attempt": self.attempt.number,  # must be the last one: see `attempt_of`
        }

    def system_attrs(self) -> dict[str, Any]:
        violation = self.proposal.violation
        return {} if violation is None else {_optuna_internals.CONSTRAINTS: [violation]}


@dataclass(frozen=True, slots=True)
class SlotQueue:
    """Writes due attempts into a study.

    Args:
        space: Returns the space of the current epoch.
        strategy: Proposes generations.
    """

    space: SpaceProvider
    strategy: GenerationStrategy

    def fill(self, study: Study) -> int:
        """Queue all due attempts and return how many were queued."""
        fail_lost_trials(study)
        trials = study.get_trials(deepcopy=False)
        if trials_without_slot(trials):
            return 0
        view = self.space(study)  # after the trials were read: see `SpaceProvider`
        with _WRITE_LOCK:
            return self._queue(study, view, self._due(study, view, trials))

    def assign_slot(self, study: Study, trial: FrozenTrial) -> dict[str, int]:
        """Assign a slot to a trial, waiting for one if necessary, and return its parameters.

        Raises:
            UpdateFinishedTrialError: The trial was ended by another worker meanwhile.
        """
        start, pause, warned = time.monotonic(), _MIN_PAUSE, False
        while True:
            trials = study.get_trials(deepcopy=False)
            if fail_lost_trials(study, trials):
                continue
            if trials[trial.number].state.is_finished():
                raise UpdateFinishedTrialError(
                    f"Trial {trial.number} was ended while it waited for a slot."
                )
            if trials_without_slot(trials)[0] == trial.number:
                params = self._lead(study, trial, trials)
                if params is not None:
                    return params
            if not warned and time.monotonic() - start > _WARN_AFTER_SECONDS:
                running = [t.number for t in trials if t.state == TrialState.RUNNING]
                _logger.warning(
                    f"Trial {trial.number} waits for the running trials {running} to end. Pass "
                    "trials that were asked for to `Study.tell`; fail those whose worker is lost."
                )
                warned = True
            time.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)

    def _lead(
        self, study: Study, trial: FrozenTrial, trials: Sequence[FrozenTrial]
    ) -> dict[str, int] | None:
        """Queue the due attempts but one for each trial without a slot, and take the first."""
        view = self.space(study)  # after the trials were read: see `SpaceProvider`
        with _WRITE_LOCK:
            due = self._due(study, view, trials)
            if not due:
                return self._take_over(study, trial, trials, view)
            first, others = due[0], due[1:]
            n_waiting = len(trials_without_slot(study.get_trials(deepcopy=False))) - 1
            self._queue(study, view, others[: max(0, len(others) - n_waiting)])
            current = trials_of_epoch(study.get_trials(deepcopy=False), view.epoch)
            if not is_due(effective_trials(current), first.attempt):
                return None  # `fill` was faster
            return _take_slot(study, trial, view, first)

    def _due(
        self, study: Study, view: SpaceView, trials: Sequence[FrozenTrial]
    ) -> list[_QueuedAttempt]:
        """Return every due attempt with its genome; all are of one generation."""
        size = self.strategy.population_size
        effective = effective_trials(trials_of_epoch(trials, view.epoch))
        attempts = due_attempts(effective, view.epoch, population_size=size)
        if not attempts:
            return []
        generation = attempts[0].slot.generation
        past = [
            trial
            for slot, trial in effective.items()
            if slot.generation < generation
            and trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        ]
        comparable = [
            trial
            for trial in trials
            if trial.state == TrialState.COMPLETE
            and trial.user_attrs.get("epoch") not in (None, view.epoch)
            and view.is_comparable(trial)
        ]
        proposals: Sequence[ProposedGenome] = ()
        if any(attempt.number == 0 for attempt in attempts):  # others repeat what was proposed
            proposals = self.strategy.generation(
                view, generation, past, study.directions, comparable
            )
        return [
            _QueuedAttempt(
                attempt,
                proposed_genome_of(effective[attempt.slot])
                if attempt.number
                else proposals[attempt.slot.index],
            )
            for attempt in attempts
        ]

    def _queue(self, study: Study, view: SpaceView, due: Sequence[_QueuedAttempt]) -> int:
        """Queue attempts, then withdraw duplicates of them and trials of earlier epochs."""
        trials = study.get_trials(deepcopy=False)
        effective = effective_trials(trials_of_epoch(trials, view.epoch))
        created_ids = {
            _optuna_internals.create_waiting_trial(
                study,
                params=queued.proposal.params,
                distributions=view.distributions,
                user_attrs=queued.user_attrs(view),
                system_attrs=queued.system_attrs(),
            )
            for queued in due
            if is_due(effective, queued.attempt)
        }
        trials = study.get_trials(deepcopy=False)
        first = first_trials(trials_of_epoch(trials, view.epoch))
        for trial in trials:
            if trial.state != TrialState.WAITING:
                continue
            created = _optuna_internals.trial_id_of(trial) in created_ids
            attempt = attempt_of(trial)
            outdated = attempt is not None and attempt.slot.epoch < view.epoch
            if outdated or (created and earlier_duplicate(first, trial) is not None):
                _withdraw(study, trial)
        return len(created_ids)

    def _take_over(
        self, study: Study, trial: FrozenTrial, trials: Sequence[FrozenTrial], view: SpaceView
    ) -> dict[str, int] | None:
        """Move a slot from a queued trial to a trial without one; None if none is queued."""
        for queued in trials:
            attempt = attempt_of(queued)
            if queued.state != TrialState.WAITING or attempt is None:
                continue
            if attempt.slot.epoch != view.epoch:
                continue
            if not _optuna_internals.start_trial(study, queued):
                continue
            proposal = proposed_genome_of(queued)
            params = _take_slot(study, trial, view, _QueuedAttempt(attempt, proposal))
            _optuna_internals.fail_trial(study, queued, void=WITHDRAWN)
            return params
        return None


def _take_slot(
    study: Study, trial: FrozenTrial, view: SpaceView, queued: _QueuedAttempt
) -> dict[str, int]:
    """Write an attempt into a trial without a slot, and return its parameters."""
    params = dict(queued.proposal.params)
    attrs = {_optuna_internals.GENOME: params, **queued.system_attrs()}
    _optuna_internals.set_system_attrs(study, trial, attrs)
    _optuna_internals.set_user_attrs(study, trial, queued.user_attrs(view))
    return params


def _withdraw(study: Study, trial: FrozenTrial) -> None:
    """Fail a queued trial unless a worker has started it."""
    if _optuna_internals.start_trial(study, trial):
        _optuna_internals.fail_trial(study, trial, void=WITHDRAWN)
