"""What every epoch-aware sampler does: slots, signatures, parameters; only breeding differs."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.samplers import BaseSampler, RandomSampler

from effllava_optuna.samplers import _compat
from effllava_optuna.samplers._desk import Desk
from effllava_optuna.samplers._owner import sign
from effllava_optuna.samplers._slots import (
    FOREIGN,
    WITHDRAWN,
    epoch_finished,
    is_foreign,
    ticket_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState

    from effllava_optuna.samplers._breeding import Breeder
    from effllava_optuna.samplers._space import SpaceProvider


class EpochSampler(BaseSampler):
    """Search integer widths in epochs whose space may differ, reproducibly.

    A generation is written into the study at once, as WAITING trials; the next one follows when
    all of it has ended. Every genome is a function of the seed, its slot and the trials that
    completed before: a study that was killed and resumed goes on as if nothing had happened, and
    so do several threads or processes.

    * No genome of an epoch is measured twice if that can be helped.
    * A failed slot is tried once more with the same genome.
    * A pruned trial finishes its slot: it ranks behind every trial that completed (nobody breeds
      from it), and its genome is not proposed again in its epoch.
    * A trial that a user enqueues is measured beside the slots. It gets the attributes ``kind``
      (``"foreign"``), ``epoch`` and the stamp of the space, and is no parent.
    * The objective must suggest every gene with the distribution of the space. It should ask
      `duplicate_of` before it evaluates, where several processes work on one study.
    * Give a study no other sampler at the same time. A trial that was asked for must be told, or
      the generation never ends.

    Args:
        space: Tells the space of the current epoch. None for a plain random sampler.
        breeder: Proposes generations.
        generations: Planned generations in an epoch. Where the space stays the same after them,
            the search goes on in the same epoch.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        space: SpaceProvider | None,
        breeder: Breeder,
        *,
        generations: int,
    ) -> None:
        if breeder.population_size < 2:
            raise ValueError(f"population_size must be at least 2, not {breeder.population_size}.")
        if generations < 1:
            raise ValueError(f"generations must be at least 1, not {generations}.")
        if breeder.seed < 0:
            raise ValueError(f"seed must not be negative, not {breeder.seed}.")
        self.population_size = breeder.population_size
        self.generations = generations
        self.seed = breeder.seed
        self._space = space
        self._breeder = breeder
        self._params: dict[int, dict[str, int]] = {}  # by trial id, of trials that run here

    def write_due(self, study: Study) -> int:
        """Write all slots that are due as WAITING trials, without waiting for anything.

        For a loop that wants every trial created in one transaction; ``study.optimize`` works
        without it.

        Returns:
            How many trials were written; 0 where the current generation is still at work.
        """
        return 0 if self._space is None else self._desk(self._space).fill(study)

    def _desk(self, space: SpaceProvider) -> Desk:
        return Desk(space, self._breeder)

    def slots_of_epoch_finished(self, study: Study, epoch: int) -> bool:
        """Tell whether every slot of the planned generations of an epoch is finished."""
        return epoch_finished(
            study.get_trials(deepcopy=False),
            epoch,
            population_size=self.population_size,
            generations=self.generations,
        )

    def reseed_rng(self) -> None:
        """Do nothing: there is no random state."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Sign a trial, and see to it that it holds a slot."""
        sign(study, trial)
        if self._space is None:
            return
        if ticket_of(trial) is not None:
            if _compat.GENOME in trial.system_attrs:
                self._params[_compat.trial_id(trial)] = trial.system_attrs[_compat.GENOME]
            return
        try:
            if is_foreign(trial):
                view = self._space(study)
                attrs = {**view.stamp, "kind": FOREIGN, "epoch": view.epoch}
                _compat.set_user_attrs(study, trial, attrs)
                fixed = trial.system_attrs.get(_compat.FIXED_PARAMS, {}) | trial.params
                params = self._breeder.foreign(view, trial.number, fixed)
            else:
                params = self._desk(self._space).serve(study, trial)
        except BaseException:
            # Optuna leaves it RUNNING, and everybody would wait for it.
            _compat.fail(study, trial, void=WITHDRAWN)
            raise
        self._params[_compat.trial_id(trial)] = params

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Give the genes with their distributions."""
        if self._space is None or _compat.trial_id(trial) not in self._params:
            return {}
        return dict(self._space(study).distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Give the genome that the trial's slot demands."""
        params = self._params.get(_compat.trial_id(trial), {})
        return {name: params[name] for name in search_space if name in params}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter that is no gene uniformly, from the trial's number and its name."""
        words = [self.seed, trial.number, zlib.crc32(param_name.encode())]
        seed = int(np.random.SeedSequence(words).generate_state(1)[0])
        return RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Forget the genome of a trial that has ended."""
        self._params.pop(_compat.trial_id(trial), None)
