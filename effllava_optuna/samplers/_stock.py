"""Any sampler of Optuna's kind, under the rules of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import create_trial

from effllava_optuna.samplers import _compat
from effllava_optuna.samplers._breeding import Breeder, History, Proposal, stream
from effllava_optuna.samplers._operators import Variation
from effllava_optuna.samplers._sampler import EpochSampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.samplers._selection import FloatArray
    from effllava_optuna.samplers._slots import Slot
    from effllava_optuna.samplers._space import Genome, Grid, SpaceProvider

Stock: TypeAlias = Literal["nsga2", "tpe", "random"]


class MakeSampler(Protocol):
    """Makes a sampler, the same one for the same seed."""

    def __call__(self, *, seed: int) -> BaseSampler:
        """Make it."""


_OWN = "own"  # kind of a trial that a user's sampler proposed
_MAKE: dict[str, Callable[[int], MakeSampler]] = {  # by the size of a generation
    "nsga2": lambda size: partial(NSGAIISampler, population_size=size),
    "tpe": lambda _: partial(TPESampler, n_startup_trials=0),
    "random": lambda _: RandomSampler,
}


class EpochStockSampler(EpochSampler):
    """Random search, TPE, NSGA-II or any other sampler of Optuna's kind, over epochs.

    See `EpochSampler` for what it does with them.

    The first generation of an epoch, the repair of what is above the budget, and the
    rule that no genome is measured twice are those of our own samplers; what to try next is for
    the other sampler to say, which sees the level indices of the trials of the epoch, and both
    objectives as losses. It is made anew for each generation and proposes all of it before it
    learns anything of it.

    Args:
        space: Tells the space of the current epoch. None for a plain random sampler.
        sampler: ``"nsga2"``, ``"tpe"``, ``"random"``, or what makes a sampler from a seed.
        population_size: Slots in a generation, at least 2.
        generations: Planned generations in an epoch.
        seed: Root of all randomness, not negative.

    Raises:
        ValueError: A number is out of its range, there is no such sampler, or what was made is
            none, or none for two objectives.
    """

    def __init__(
        self,
        space: SpaceProvider | None,
        sampler: Stock | MakeSampler,
        *,
        population_size: int = 20,
        generations: int = 4,
        seed: int = 0,
    ) -> None:
        if not isinstance(sampler, str):
            _try(sampler, seed)
        elif sampler not in _MAKE:
            raise ValueError(f"There is no sampler {sampler!r}: use one of {', '.join(_MAKE)}.")
        breeder = StockBreeder(seed, population_size, Variation(), sampler)
        super().__init__(space, breeder, generations=generations)


@dataclass(frozen=True, slots=True)
class StockBreeder(Breeder):
    """Proposes what another sampler suggests.

    Args:
        sampler: Its name, or what makes it.
    """

    sampler: Stock | MakeSampler

    def _next(self, grid: Grid, epoch: int, number: int, history: History) -> list[Proposal]:
        seed = int(stream(self.seed, "stock", epoch, number).integers(2**31))
        latest = [slot.generation for slot in (*history.places, *history.stopped)]
        # A stock generation is one of this size: slots that failed must not keep it open.
        size = max(2, latest.count(max(latest, default=0)))
        names = [name for name, top in zip(grid.names, grid.tops, strict=True) if top > 0]
        distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, int(top))
            for name, top in zip(grid.names, grid.tops, strict=True)
            if top > 0
        }
        kind, make = _OWN, self.sampler
        if isinstance(make, str):
            kind, make = make, _MAKE[make](size)
        study = _compat.study_in_memory(history.losses.shape[1], make(seed=seed))
        for slot, genome, losses, penalty in _told(history, grid):
            indices = dict(zip(grid.names, genome.tolist(), strict=True))
            attrs: dict[str, Any] = {_compat.NSGAII_GENERATION: slot.generation}
            if np.isfinite(grid.budget):
                attrs[_compat.CONSTRAINTS] = [penalty]
            study.add_trial(
                create_trial(
                    params={name: indices[name] for name in names},
                    distributions=distributions,
                    values=losses.tolist(),
                    system_attrs=attrs,
                )
            )
        seen, proposals = history.seen, []
        for index in range(self.population_size):
            rng = stream(self.seed, "genome", epoch, number, index)
            asked = study.ask(distributions)
            genome = np.array([asked.params.get(name, 0) for name in grid.names], dtype=np.int64)
            proposals.append(self._new(kind, genome.clip(0, grid.tops), grid, seen, rng))
        return proposals


def _try(make: MakeSampler, seed: int) -> None:
    """Make a sampler, and let it propose once.

    Raises:
        ValueError: It is none, or does not search for two objectives.
    """
    sampler = make(seed=seed)
    if not isinstance(sampler, BaseSampler):
        raise ValueError(f"A {type(sampler).__name__} was made, which is no Optuna sampler.")
    _compat.study_in_memory(2, sampler).ask({"width": IntDistribution(0, 7)})


def _told(history: History, grid: Grid) -> Iterator[tuple[Slot, Genome, FloatArray, float]]:
    """Give slot, genome, losses and penalty of all that has ended.

    What was pruned comes last, with losses worse than all that was measured.
    """
    for row, slot in history.slots():
        yield slot, history.genomes[row], history.losses[row], float(history.penalties[row])
    if history.trials:
        for slot, genome in history.stopped.items():
            yield slot, genome, history.worse(0.0), max(0.0, grid.violation(genome))
