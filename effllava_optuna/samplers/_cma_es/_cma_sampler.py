"""CMA-ES over epochs, as an Optuna sampler: for two objectives, or for one within a limit.

The state of an optimiser is never stored. Each generation replays it from what the earlier
generations of the epoch have measured: that is cheap, and nothing is unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from effllava_optuna.samplers._cma_es._cma_optimisers import (
    ConstrainedOrder,
    MultiObjectiveCma,
    SeparableCma,
)
from effllava_optuna.samplers._proposals._generation_strategy import (
    GenerationStrategy,
    GenerationTask,
    random_stream,
)
from effllava_optuna.samplers._proposals._operators import Variation
from effllava_optuna.samplers._sampler import EpochSampler
from effllava_optuna.samplers._slots import Slot

if TYPE_CHECKING:
    import numpy as np

    from effllava_optuna.samplers._level_grid import Genome, LevelGrid, SpaceProvider
    from effllava_optuna.samplers._proposals._history import History, ProposedGenome
    from effllava_optuna.samplers._proposals._screening import Screening

_DEFAULT_VARIATION = Variation()
# CMA-ES learns from four samples; of three its weights are undefined. One more is for a mean.
_MIN_POPULATION = 5


@dataclass(frozen=True, slots=True)
class CmaOptions:
    """Parameters of CMA-ES.

    Args:
        kernels: Means that share the front between them (two objectives), at least 2.
        step_size: Initial standard deviation, as a fraction of the range of a gene, in (0, 1].
        limit: Largest (or smallest, if it is maximised) value of the second objective; None for
            no limit.

    Raises:
        ValueError: A number is out of its range.
    """

    kernels: int = 3
    step_size: float = 0.2
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.kernels < 2:
            raise ValueError(f"kernels must be at least 2, not {self.kernels}.")
        if not 0 < self.step_size <= 1:
            raise ValueError(f"step_size must be in (0, 1], not {self.step_size}.")


_DEFAULT_OPTIONS = CmaOptions()


class EpochCMASampler(EpochSampler):
    """CMA-ES over epochs; see `EpochSampler` for its guarantees.

    With two objectives and no limit it is COMO-CatCMA with margin (arXiv:2504.07884): a few
    kernels, each of which improves the hypervolume that the means of the others leave to it. With
    one objective, or with two and a limit on the second, it is separable CMA-ES (Ros & Hansen
    2008) on the first. Trials beyond the limit rank behind all trials within it, by their excess.

    The first generations of an epoch are those of `EpochNSGAIISampler`: seeds and allocated
    genomes, or the elites measured again and their children. The kernels start at the best of
    these, with a fresh step size. Each later generation updates one kernel; 12 to 20 slots are a
    good size. The optimiser is updated with the genome that was measured, which may have been
    repaired. A slot without a result, a pruned trial and a trial above the budget count as worse
    than everything measured.

    Args:
        space: Returns the space of the current epoch. None for a plain random sampler.
        options: Parameters of CMA-ES.
        population_size: Slots in a generation, at least 5.
        seed: Root of all randomness, not negative.
        variation: Parameters of the operators of the first generation.
        screening: How half of each later generation is chosen from many children of the elite;
            None: CMA-ES proposes the whole generation.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        space: SpaceProvider | None,
        *,
        options: CmaOptions = _DEFAULT_OPTIONS,
        population_size: int = 20,
        seed: int = 0,
        variation: Variation = _DEFAULT_VARIATION,
        screening: Screening | None = None,
    ) -> None:
        if population_size < _MIN_POPULATION:
            raise ValueError(
                f"population_size must be at least {_MIN_POPULATION}, not {population_size}."
            )
        strategy = CMAStrategy(seed, population_size, variation, screening, options)
        super().__init__(space, strategy)


@dataclass(frozen=True, slots=True)
class CMAStrategy(GenerationStrategy):
    """Proposes what a replayed CMA-ES asks for.

    Args:
        options: Parameters of CMA-ES.
        cache: By epoch, the optimiser that was replayed last: its updates are not repeated.
    """

    options: CmaOptions
    cache: dict[int, ReplayedOptimiser] = field(default_factory=dict, compare=False, repr=False)

    def _later_generation(self, task: GenerationTask) -> list[ProposedGenome]:
        grid, epoch, number = task.grid, task.view.epoch, task.number
        known, pairing = task.history.known_genomes, self._elite_pairing(task.history)
        optimiser = self.replay(task)
        proposals = []
        if optimiser is not None:
            for index, sample in enumerate(optimiser.ask()):
                rng = random_stream(self.seed, "genome", epoch, number, index)
                proposals.append(self._propose_near(sample.kind, sample.genome, grid, known, rng))
        return proposals + self._fill(task, len(proposals), pairing, known)

    @property
    def _n_samples(self) -> int:
        """Return the slots of a generation that CMA-ES proposes."""
        if self.screening is None:
            return self.population_size
        return max(_MIN_POPULATION, self.population_size // 2)

    def replay(self, task: GenerationTask) -> MultiObjectiveCma | SeparableCma | None:
        """Return the optimiser in its state before a generation.

        None if there is nothing to optimise: fewer than two free genes, or no result to start at.
        """
        grid, history = task.grid, task.history
        epoch, number = task.view.epoch, task.number
        opening = history.before(task.first)
        if len(grid.free_genes) < 2 or not opening.genomes:
            return None
        cached = self.cache.pop(epoch, None)
        if cached is not None and cached.precedes(history, number):
            start, optimiser = cached.generation, cached.optimiser
        else:
            start, optimiser = task.first, self._create_optimiser(grid, epoch, opening)
        for generation in range(start, number):
            asked = [sample.genome for sample in optimiser.ask()]
            known = history.before(generation + 1)
            optimiser.tell(_results(known, asked, epoch, generation))
        self.cache[epoch] = ReplayedOptimiser(number, history.before(number).digest, optimiser)
        return optimiser

    def _create_optimiser(
        self, grid: LevelGrid, epoch: int, opening: History
    ) -> MultiObjectiveCma | SeparableCma:
        """Create an optimiser that starts at the best genomes of the first generations."""
        seed = int(random_stream(self.seed, "optimiser", epoch).integers(2**31))
        n_objectives = opening.losses.shape[1]
        limit = self.options.limit if n_objectives == 2 else None
        if n_objectives == 1 or limit is not None:
            order = ConstrainedOrder(None if limit is None else float(opening.signs[1] * limit))

            def key(row: int) -> tuple[float, float, float]:
                return opening.penalties[row], *order.key(opening.losses[row])

            best = min(range(len(opening.genomes)), key=key)
            return SeparableCma(
                top_levels=grid.top_levels,
                start=opening.genomes[best],
                order=order,
                step_size=self.options.step_size,
                samples=self._n_samples,
                seed=seed,
            )
        if n_objectives != 2:
            raise ValueError(f"CMA-ES needs one or two objectives, not {n_objectives}.")
        rows, elite = opening.elite(self.options.kernels)
        starts = [rows[member] for member in elite.members]
        return MultiObjectiveCma(
            top_levels=grid.top_levels,
            starts=[opening.genomes[row] for row in starts],
            losses=opening.losses[starts],
            step_size=self.options.step_size,
            samples=self._n_samples - 1,  # the last slot is for the mean of the kernel before
            seed=seed,
        )


def _results(
    history: History, asked: list[Genome], epoch: int, generation: int
) -> list[tuple[Genome, np.ndarray]]:
    """Return genome and losses of each sample that an optimiser asked for in a generation.

    Samples above the budget, pruned or without a result get losses worse than all measured ones.
    """
    rows = history.rows_of(generation)
    results = []
    for index, genome in enumerate(asked):
        row = rows.get(index)
        if row is None:
            slot = Slot(epoch, generation, index)
            results.append((history.pruned.get(slot, genome), history.penalty_losses(0.0)))
        else:
            penalty = history.penalties[row]
            losses = history.penalty_losses(penalty) if penalty > 0 else history.losses[row]
            results.append((history.genomes[row], losses))
    return results


@dataclass(frozen=True, slots=True)
class ReplayedOptimiser:
    """An optimiser and the history that it was updated with.

    Args:
        generation: Number of the generation whose samples it asks for.
        digest: Digest of the history before that generation.
        optimiser: The optimiser.
    """

    generation: int
    digest: bytes
    optimiser: MultiObjectiveCma | SeparableCma

    def precedes(self, history: History, number: int) -> bool:
        """Return whether the optimiser can continue to generation ``number`` of a history."""
        if self.generation > number:
            return False
        return history.before(self.generation).digest == self.digest
