"""The control study: what each epoch has, published exactly once.

Epoch 0 is the calibration bundle; every later one is a projector, a basis and a space. An attempt
to make one is a trial of the control study, created in one transaction with everything that says
whose it is. The lowest-numbered running attempt of an epoch leads, the others wait; COMPLETE
publishes, and everybody reads the lowest-numbered COMPLETE attempt. An attempt whose process has
died, or whose lease has run out, is failed by whoever waits for it, and taken over. If its process
was only slow, it publishes nothing: what is failed cannot be completed.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from effllava_optuna.logging import get_logger
from effllava_optuna.samplers import (
    beat,
    owner_alive,
    pulses_of,
    this_process,
    write_user_attrs,
)
from effllava_optuna.study.artifacts import show
from effllava_optuna.study.storage import control_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna.storages import BaseStorage

_logger = get_logger(__name__)
_MOST = 1_000_000
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two looks


@dataclass(frozen=True, slots=True)
class Publication:
    """What an epoch has.

    Attributes:
        value: What the control study charts: proxy accuracy, cross-fitted, in [0, 1].
        facts: JSON by name; they become attributes of the control trial.
        artifact: Name of the tensors in the vault; None: there are none of its own.
        label: What the dashboard calls them.
    """

    value: float
    facts: Mapping[str, Any]
    artifact: str | None
    label: str = ""


def published(control: optuna.Study) -> list[FrozenTrial]:
    """Give the attempt that counts for each epoch, from 0, up to the first gap."""
    first = _first(control)
    found: list[FrozenTrial] = []
    while len(found) in first:
        found.append(first[len(found)])
    return found


def _first(control: optuna.Study) -> dict[int, FrozenTrial]:
    """Give the lowest-numbered COMPLETE attempt by epoch."""
    first: dict[int, FrozenTrial] = {}
    for attempt in control.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        first.setdefault(int(attempt.params["epoch"]), attempt)
    return first


def dead_attempts(control: optuna.Study) -> list[FrozenTrial]:
    """Give the running attempts whose process has died; nothing is changed."""
    running = control.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return _dead(control, running) if running else []


def _dead(control: optuna.Study, running: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    pulses = pulses_of(control)
    return [a for a in running if owner_alive(a.user_attrs["owner"], pulses) is False]


class Ledger:
    """Publishes and reads the epochs of one study.

    Args:
        storage: Of the study.
        study_name: Of the study, not of the control study.
    """

    def __init__(self, storage: BaseStorage, study_name: str) -> None:
        self._storage = storage
        self._study = optuna.create_study(
            storage=storage,
            study_name=control_name(study_name),
            direction="maximize",
            sampler=optuna.samplers.RandomSampler(),
            load_if_exists=True,
        )
        self._read: dict[int, FrozenTrial] = {}  # what is published stays as it is

    @property
    def study(self) -> optuna.Study:
        """Give the control study."""
        return self._study

    def _attempts(self, epoch: int) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.params.get("epoch") == epoch]

    def epochs(self) -> list[FrozenTrial]:
        """Give the published epochs, from 0, up to the first gap."""
        found: list[FrozenTrial] = []
        while (attempt := self.published(len(found))) is not None:
            found.append(attempt)
        return found

    def published(self, epoch: int) -> FrozenTrial | None:
        """Give the attempt that counts for ``epoch``, if there is one."""
        if epoch not in self._read:
            self._read |= _first(self._study)
        return self._read.get(epoch)

    def publish(self, epoch: int, make: Callable[[], Publication]) -> FrozenTrial:
        """Give what ``epoch`` has; ``make`` it if nobody else has, or does."""
        pause = _SHORTEST_PAUSE
        while (found := self.published(epoch)) is None:
            mine = self._claim(epoch)
            if mine is None:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            try:
                self._fulfil(mine, make())
            except UpdateFinishedTrialError:
                _logger.warning(
                    f"Epoch {epoch} was taken over: this process had not been heard of."
                )
            except BaseException:
                self._fail(mine)
                raise
        return found

    def reap(self) -> list[int]:
        """Fail the attempts whose process has died, and give their numbers."""
        dead = dead_attempts(self._study)
        for attempt in dead:
            self._fail(attempt)
        return [attempt.number for attempt in dead]

    def _claim(self, epoch: int) -> FrozenTrial | None:
        attempts = self._attempts(epoch)
        running = [attempt for attempt in attempts if attempt.state == TrialState.RUNNING]
        if running:
            dead = _dead(self._study, running)
            for attempt in dead:
                self._fail(attempt)
            if len(dead) < len(running):
                return None
        beat(self._study)
        whole = IntDistribution(0, _MOST)
        params = {"epoch": epoch, "attempt": len(attempts)}
        trial_id = self._storage.create_new_trial(
            self._study._study_id,
            template_trial=create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions=dict.fromkeys(params, whole),
                user_attrs={"owner": this_process()},
            ),
        )
        mine = self._storage.get_trial(trial_id)
        rivals = [
            attempt.number
            for attempt in self._attempts(epoch)
            if attempt.state in (TrialState.RUNNING, TrialState.COMPLETE)
        ]
        if mine.number != min(rivals):
            self._fail(mine)
            return None
        return mine

    def _fulfil(self, mine: FrozenTrial, publication: Publication) -> None:
        facts = dict(publication.facts)
        if publication.artifact is not None:
            facts["artifact"] = publication.artifact
        write_user_attrs(self._study, mine._trial_id, facts)
        if publication.artifact is not None:
            show(self._storage, mine._trial_id, publication.artifact, publication.label)
        self._storage.set_trial_state_values(
            mine._trial_id, TrialState.COMPLETE, [publication.value]
        )

    def _fail(self, attempt: FrozenTrial) -> None:
        with suppress(UpdateFinishedTrialError):  # by somebody else, who saw the same
            self._storage.set_trial_state_values(attempt._trial_id, TrialState.FAIL)
