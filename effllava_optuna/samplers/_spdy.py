"""SPDY over epochs, as an Optuna sampler: a search for weights of sensitivity curves.

Frantar & Alistarh 2022, "SPDY: Accurate Pruning with Speedup Guarantees", arXiv:2201.13096: a
policy is what dynamic programming computes from weighted sensitivity curves, so that every policy
is within the budget, and what a search decides is the weight of each curve. It departs from the
paper in three points: neighbouring genes share a weight, the limit is a variable too (a front is
searched for), and a Gaussian process replaces random and local search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from threadpoolctl import threadpool_limits

from effllava_optuna.samplers._level_grid import ProgrammeView
from effllava_optuna.samplers._optuna_internals import create_gp_sampler, create_study_in_memory
from effllava_optuna.samplers._proposals._generation_strategy import (
    GenerationStrategy,
    random_stream,
)
from effllava_optuna.samplers._proposals._history import ProposedGenome, proposed_genome_of
from effllava_optuna.samplers._proposals._operators import Variation
from effllava_optuna.samplers._sampler import EpochSampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from effllava_optuna.samplers._level_grid import Genome, LevelGrid, Programme, SpaceProvider
    from effllava_optuna.samplers._proposals._generation_strategy import GenerationTask, Pairing
    from effllava_optuna.samplers._proposals._history import History

_LARGEST = math.log(10)  # coefficient: weights are from 0.1 to 10
_STEPS = 20  # that are tried from a vector whose genome is known
_STEP = 0.02  # deviation of the first of them, as a share of the range; the others are longer
_DEFAULT_VARIATION = Variation()


class EpochSpdySampler(EpochSampler):
    """Weights of sensitivity curves over epochs; see `EpochSampler` for its guarantees.

    Optuna's GPSampler proposes vectors: the logarithm of the weight of each group of genes, and
    the position of the limit. The `Programme` of the epoch computes a genome from each. The
    sampler learns from the trials of the epoch that were proposed in this way, and from the
    allocated genomes that the programme computes from coefficients of 0. An epoch without a
    programme is searched as by `EpochNSGAIISampler`.

    GPSampler is created anew for each generation, and proposes all of the generation before any of
    it is measured. A vector whose genome is known is moved until it gives a new one; if there is
    none near it, the genome is mutated.

    Args:
        space: Returns the space of the current epoch, a `ProgrammeView` too. None for a plain
            random sampler.
        population_size: Slots in a generation, at least 2.
        seed: Root of all randomness, not negative.
        variation: Parameters of the operators of an epoch without a programme.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        space: SpaceProvider | None,
        *,
        population_size: int = 20,
        seed: int = 0,
        variation: Variation = _DEFAULT_VARIATION,
    ) -> None:
        super().__init__(space, SpdyStrategy(seed, population_size, variation, None))


class SpdyStrategy(GenerationStrategy):
    """Proposes what a programme computes from the vectors that a Gaussian process suggests."""

    def _later_generation(self, task: GenerationTask) -> list[ProposedGenome]:
        known = task.history.known_genomes
        return self._fill(task, 0, self._elite_pairing(task.history), known)

    def _fill(
        self, task: GenerationTask, start: int, pairing: Pairing | None, known: set[bytes]
    ) -> list[ProposedGenome]:
        view = task.view
        programme = view.programme(task.opening) if isinstance(view, ProgrammeView) else None
        if programme is None:
            return super()._fill(task, start, pairing, known)
        epoch, number, grid = view.epoch, task.number, task.grid
        vectors = _Vectors(programme, grid)
        seed = int(random_stream(self.seed, "vectors", epoch, number).integers(2**30))
        with threadpool_limits(1):  # the last bits of a result depend on the number of threads
            study = vectors.study(task, seed)
            measured = _losses_by_genome(task.history)
            proposals = []
            for index in range(start, self.population_size):
                rng = random_stream(self.seed, "genome", epoch, number, index)
                trial = study.ask(vectors.distributions)
                vector: Sequence[float] = [trial.params[name] for name in vectors.distributions]
                genome = vectors.genome(vector)
                if genome.tobytes() in measured:  # one more result that the next vector can use
                    study.tell(trial, measured[genome.tobytes()])
                vector, genome = vectors.unknown_neighbour(vector, genome, known, rng)
                if genome.tobytes() in known:
                    proposals.append(self._propose_near("child", genome, grid, known, rng))
                    continue
                known.add(genome.tobytes())
                violation, params = grid.constraint(genome), grid.params(genome)
                proposals.append(ProposedGenome(params, "weighted", None, violation, vector))
        return proposals


@dataclass(frozen=True, slots=True)
class _Vectors:
    """The vectors that a programme computes genomes from.

    Args:
        programme: Computes a genome from coefficients and a position.
        grid: The genes.
    """

    programme: Programme
    grid: LevelGrid

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the range of each number of a vector, the position last."""
        coefficients: dict[str, BaseDistribution] = {
            f"coefficient {group}": FloatDistribution(-_LARGEST, _LARGEST)
            for group in range(len(self.programme.groups))
        }
        return {**coefficients, "position": FloatDistribution(0.0, 1.0)}

    def genome(self, vector: Sequence[float]) -> Genome:
        """Return the genome that the programme computes from a vector."""
        *coefficients, position = vector
        return self.grid.genome(self.programme.solve(coefficients, position))

    def study(self, task: GenerationTask, seed: int) -> Study:
        """Create a study of the vectors that were measured, with their losses as its values."""
        study = create_study_in_memory(task.history.losses.shape[1], create_gp_sampler(seed))
        distributions = self.distributions
        for trial, losses in _measured(task):
            vector = self._vector_of(trial)
            if (
                vector is None
                or len(vector) != len(distributions)
                or not np.isfinite(losses).all()
            ):
                continue
            study.add_trial(
                create_trial(
                    params=dict(zip(distributions, vector, strict=True)),
                    distributions=distributions,
                    values=losses,
                )
            )
        return study

    def _vector_of(self, trial: FrozenTrial) -> Sequence[float] | None:
        proposed = proposed_genome_of(trial)
        if proposed.kind != "allocated":
            return proposed.vector
        params = proposed.params
        plain = [0.0] * len(self.programme.groups) + [self.programme.position(params)]
        # The best policy of a number of image tokens need not be the best one of all.
        return plain if np.array_equal(self.genome(plain), self.grid.genome(params)) else None

    def unknown_neighbour(
        self, vector: Sequence[float], genome: Genome, known: set[bytes], rng: np.random.Generator
    ) -> tuple[Sequence[float], Genome]:
        """Return a vector near another whose genome is not in ``known``, and this genome.

        If there is none within a number of growing steps, the result is the last of them.
        """
        low = np.array([-_LARGEST] * (len(vector) - 1) + [0.0])
        high = np.array([_LARGEST] * (len(vector) - 1) + [1.0])
        start = np.array(vector)
        for step in range(_STEPS):
            if genome.tobytes() not in known:
                break
            scale = _STEP * (step + 1) * (high - low)
            vector = (start + scale * rng.standard_normal(len(start))).clip(low, high).tolist()
            genome = self.genome(vector)
        return vector, genome


def _measured(task: GenerationTask) -> Iterator[tuple[FrozenTrial, list[float]]]:
    """Yield the trials of an epoch with their losses.

    Pruned trials come last, with losses worse than all measured ones.
    """
    history = task.history
    complete = [trial for trial in task.past if trial.state == TrialState.COMPLETE]
    yield from zip(complete, history.losses.tolist(), strict=True)
    for trial in task.past if complete else ():
        if trial.state == TrialState.PRUNED:
            yield trial, history.penalty_losses(0.0).tolist()


def _losses_by_genome(history: History) -> dict[bytes, list[float]]:
    """Return the finite losses of each measured genome."""
    pairs = zip(history.genomes, history.losses, strict=True)
    return {g.tobytes(): losses.tolist() for g, losses in pairs if np.isfinite(losses).all()}
