"""Any Optuna sampler over epochs, under the rules of our own samplers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import create_trial

from effllava_optuna.samplers._optuna_internals import (
    CONSTRAINTS,
    NSGAII_GENERATION,
    create_study_in_memory,
)
from effllava_optuna.samplers._proposals._generation_strategy import (
    GenerationStrategy,
    GenerationTask,
    random_stream,
)
from effllava_optuna.samplers._proposals._operators import Variation
from effllava_optuna.samplers._sampler import EpochSampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna.study import Study

    from effllava_optuna.samplers._level_grid import Genome, LevelGrid, SpaceProvider
    from effllava_optuna.samplers._proposals._history import History, ProposedGenome
    from effllava_optuna.samplers._proposals._selection import FloatArray
    from effllava_optuna.samplers._slots import Slot

Stock: TypeAlias = Literal["nsga2", "tpe", "random"]


class MakeSampler(Protocol):
    """A function that creates a sampler, the same one for the same seed."""

    def __call__(self, *, seed: int) -> BaseSampler:
        """Create the sampler."""


_USER_SAMPLER = "own"  # kind of a trial that a user's sampler proposed
_FACTORIES: dict[str, Callable[[int], MakeSampler]] = {  # called with the size of a generation
    "nsga2": lambda size: partial(NSGAIISampler, population_size=size),
    "tpe": lambda _: partial(TPESampler, n_startup_trials=0),
    "random": lambda _: RandomSampler,
}


class EpochStockSampler(EpochSampler):
    """Random search, TPE, NSGA-II or any other Optuna sampler over epochs.

    See `EpochSampler` for its guarantees. The first generation of an epoch, the repair of genomes
    above the budget and the rule that no genome is measured twice are those of our own samplers.
    The other sampler decides what to measure next. It sees the level indices of the trials of the
    epoch and both objectives as losses. It is created anew for each generation, and proposes all
    of the generation before any of it is measured.

    Args:
        space: Returns the space of the current epoch. None for a plain random sampler.
        sampler: ``"nsga2"``, ``"tpe"``, ``"random"``, or a function that creates a sampler.
        population_size: Slots in a generation, at least 2.
        seed: Root of all randomness, not negative.

    Raises:
        ValueError: A number is out of its range, the name is unknown, or the function does not
            create a sampler for two objectives.
    """

    def __init__(
        self,
        space: SpaceProvider | None,
        sampler: Stock | MakeSampler,
        *,
        population_size: int = 20,
        seed: int = 0,
    ) -> None:
        if not isinstance(sampler, str):
            _check_sampler(sampler, seed)
        elif sampler not in _FACTORIES:
            raise ValueError(
                f"sampler must be one of {', '.join(_FACTORIES)} or a function, not {sampler!r}."
            )
        strategy = StockStrategy(seed, population_size, Variation(), None, sampler)
        super().__init__(space, strategy)


@dataclass(frozen=True, slots=True)
class StockStrategy(GenerationStrategy):
    """Proposes what another sampler suggests.

    Args:
        sampler: Name of the sampler, or a function that creates it.
    """

    sampler: Stock | MakeSampler

    def _later_generation(self, task: GenerationTask) -> list[ProposedGenome]:
        grid, history = task.grid, task.history
        epoch, number = task.view.epoch, task.number
        seed = int(random_stream(self.seed, "stock", epoch, number).integers(2**31))
        kind, create = _USER_SAMPLER, self.sampler
        if isinstance(create, str):
            kind, create = create, _FACTORIES[create](_last_generation_size(history))
        study = create_study_in_memory(history.losses.shape[1], create(seed=seed))
        distributions: dict[str, BaseDistribution] = {
            grid.names[gene]: IntDistribution(0, int(grid.top_levels[gene]))
            for gene in grid.free_genes
        }
        _add_history(study, history, grid, distributions)
        known, proposals = history.known_genomes, []
        for index in range(self.population_size):
            rng = random_stream(self.seed, "genome", epoch, number, index)
            asked = study.ask(distributions)
            genome = np.array([asked.params.get(name, 0) for name in grid.names], dtype=np.int64)
            genome = genome.clip(0, grid.top_levels)
            proposals.append(self._propose_near(kind, genome, grid, known, rng))
        return proposals


def _last_generation_size(history: History) -> int:
    """Return the results in the last generation, at least 2.

    NSGAIISampler takes parents from generations of this size: slots without a result must not keep
    a generation open.
    """
    generations = [slot.generation for slot in (*history.slots, *history.pruned)]
    return max(2, generations.count(max(generations, default=0)))


def _add_history(
    study: Study, history: History, grid: LevelGrid, distributions: dict[str, BaseDistribution]
) -> None:
    for slot, genome, losses, penalty in _measured(history, grid):
        indices = dict(zip(grid.names, genome.tolist(), strict=True))
        attrs: dict[str, Any] = {NSGAII_GENERATION: slot.generation}
        if np.isfinite(grid.budget):
            attrs[CONSTRAINTS] = [penalty]
        study.add_trial(
            create_trial(
                params={name: indices[name] for name in distributions},
                distributions=distributions,
                values=losses.tolist(),
                system_attrs=attrs,
            )
        )


def _check_sampler(create: MakeSampler, seed: int) -> None:
    """Create a sampler and ask it for one proposal.

    Raises:
        ValueError: It is not a sampler, or does not search for two objectives.
    """
    sampler = create(seed=seed)
    if not isinstance(sampler, BaseSampler):
        raise ValueError(
            f"sampler must create an optuna.samplers.BaseSampler, not a {type(sampler).__name__}."
        )
    create_study_in_memory(2, sampler).ask({"width": IntDistribution(0, 7)})


def _measured(
    history: History, grid: LevelGrid
) -> Iterator[tuple[Slot, Genome, FloatArray, float]]:
    """Yield slot, genome, losses and penalty of all trials that have ended.

    Pruned trials come last, with losses worse than all measured ones.
    """
    for row, slot in enumerate(history.slots):
        yield slot, history.genomes[row], history.losses[row], float(history.penalties[row])
    if history.genomes:
        for slot, genome in history.pruned.items():
            penalty = max(0.0, grid.violation(genome))
            yield slot, genome, history.penalty_losses(0.0), penalty
