"""What all epoch samplers share: slots, owners and parameters; strategies propose genomes."""

from __future__ import annotations

import math
import zlib
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler

from effllava_optuna.samplers._lease import write_owner
from effllava_optuna.samplers._optuna_internals import (
    FIXED_PARAMS,
    GENOME,
    OWN_ATTRS,
    fail_trial,
    set_system_attrs,
    set_user_attrs,
    trial_id_of,
)
from effllava_optuna.samplers._queue import SlotQueue
from effllava_optuna.samplers._slots import USER_KIND, WITHDRAWN, attempt_of, is_enqueued_by_user

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState

    from effllava_optuna.samplers._level_grid import SpaceProvider, SpaceView
    from effllava_optuna.samplers._proposals._generation_strategy import GenerationStrategy


class EpochSampler(BaseSampler):
    """Search integer widths in epochs whose space may differ, reproducibly.

    A generation is queued in the study at once, as WAITING trials; the next one follows when all
    of it has ended. Every genome is a function of the seed, its slot and the trials that completed
    before: a study that was killed and resumed continues as if it had not been interrupted, and so
    does a study with several threads or processes.

    * No genome of an epoch is measured twice if that can be avoided.
    * An epoch has as many generations as its space lasts.
    * A failed slot is tried once more with the same genome.
    * A pruned trial finishes its slot: it ranks behind every complete trial, is not a parent, and
      its genome is not proposed again in its epoch.
    * A trial that a user enqueues is measured in addition to the slots. It gets the attributes
      ``kind`` (``"user"``), ``epoch`` and the stamp of the space, and is not a parent.
    * The objective must suggest every gene with the distribution of the space. If several
      processes work on one study, it should call `duplicate_of` before it evaluates.
    * Do not use another sampler on the study at the same time. Pass every trial that was asked for
      to `Study.tell`, or the generation never ends.

    Args:
        space: Returns the space of the current epoch. None for a plain random sampler.
        strategy: Proposes generations.

    Attributes:
        user_space: Returns the space of a trial that a user enqueues. By default ``space``, which
            may refuse when no more slots are due.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(self, space: SpaceProvider | None, strategy: GenerationStrategy) -> None:
        size = strategy.population_size
        if size < 2:
            raise ValueError(f"population_size must be at least 2, not {size}.")
        if strategy.seed < 0:
            raise ValueError(f"seed must not be negative, not {strategy.seed}.")
        self.seed = strategy.seed
        self.user_space = self._space = space
        self._strategy = strategy
        self._params: dict[int, dict[str, int]] = {}  # by trial id, of trials that run here

    def queue_due_trials(self, study: Study) -> int:
        """Queue all slots that are due as WAITING trials, without waiting for other workers.

        For a loop that creates every trial in one transaction; ``study.optimize`` works without
        this method.

        Returns:
            The number of queued trials; 0 while the current generation is unfinished.
        """
        return 0 if self._space is None else self._queue(self._space).fill(study)

    def _queue(self, space: SpaceProvider) -> SlotQueue:
        return SlotQueue(space, self._strategy)

    def reseed_rng(self) -> None:
        """Do nothing: the sampler has no random state."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Store the owner of a trial, and assign a slot to it unless it has one."""
        write_owner(study, trial)
        if self._space is None:
            return
        if attempt_of(trial) is not None:
            if GENOME in trial.system_attrs:
                self._params[trial_id_of(trial)] = trial.system_attrs[GENOME]
            return
        try:
            if is_enqueued_by_user(trial):
                params = self._prepare_user_trial(study, trial)
            else:
                params = self._queue(self._space).assign_slot(study, trial)
        except BaseException:
            # Optuna leaves the trial RUNNING, and all other workers would wait for it.
            fail_trial(study, trial, void=WITHDRAWN)
            raise
        self._params[trial_id_of(trial)] = params

    def _prepare_user_trial(self, study: Study, trial: FrozenTrial) -> dict[str, int]:
        """Describe a trial that a user enqueued, and return all of its parameters.

        Raises:
            UpdateFinishedTrialError: It has a value that is not a number, and is failed.
        """
        view = self._space_of(study, trial)
        attrs = {**view.stamp, "kind": USER_KIND, "epoch": view.epoch}
        if trial.user_attrs:
            set_system_attrs(study, trial, {OWN_ATTRS: dict(trial.user_attrs)})
        set_user_attrs(study, trial, attrs)
        fixed = trial.system_attrs.get(FIXED_PARAMS, {}) | trial.params
        for name in view.distributions.keys() & fixed.keys():
            if not _is_number(fixed[name]):
                fail_trial(study, trial)
                raise UpdateFinishedTrialError(
                    f"Trial {trial.number} was enqueued with {name} = {fixed[name]!r}, which is "
                    "not a number."
                )
        return self._strategy.complete_user_genome(view, trial.number, fixed)

    def _space_of(self, study: Study, trial: FrozenTrial) -> SpaceView:
        """Return the space of a trial."""
        provider = self.user_space if is_enqueued_by_user(trial) else self._space
        if provider is None:
            raise ValueError("A plain random sampler has no space.")
        return provider(study)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the genes with their distributions."""
        if self._space is None or trial_id_of(trial) not in self._params:
            return {}
        return dict(self._space_of(study, trial).distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the genome of the trial's slot."""
        params = self._params.get(trial_id_of(trial), {})
        return {name: params[name] for name in search_space if name in params}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter that is not a gene uniformly, from the trial number and its name."""
        words = [self.seed, trial.number, zlib.crc32(param_name.encode())]
        seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        return RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Remove the genome of a trial that has ended from memory."""
        self._params.pop(trial_id_of(trial), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
