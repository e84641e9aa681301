"""Generations as pure functions of what was measured before them."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from optuna.trial import TrialState

from effllava_optuna.samplers._history import History, ProposedGenome
from effllava_optuna.samplers._level_grid import Genome, LevelGrid, Seed, SpaceView
from effllava_optuna.samplers._operators import (
    Variation,
    crossover,
    mutate,
    repair,
    scatter,
    switch,
)
from effllava_optuna.samplers._selection import tournament

if TYPE_CHECKING:
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

Pairing: TypeAlias = Callable[[np.random.Generator], tuple[Genome, Genome]]

# Mutations before a child may repeat a genome: a space can have fewer genomes than a study trials.
_MAX_MUTATIONS = 50


def random_stream(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """Return the random stream of one purpose at one position, the same on every machine.

    The purpose is part of the seed: renaming one changes every search.
    """
    words = [seed, *position, zlib.crc32(purpose.encode())]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


@dataclass(frozen=True, slots=True)
class GenerationStrategy(ABC):
    """Proposes generations; subclasses define those after the first of an epoch.

    Args:
        seed: Root of all randomness.
        population_size: Genomes in a generation.
        variation: Parameters of the operators.
    """

    seed: int
    population_size: int
    variation: Variation

    def generation(
        self,
        view: SpaceView,
        number: int,
        past: Sequence[FrozenTrial],
        directions: Sequence[StudyDirection],
    ) -> list[ProposedGenome]:
        """Propose the genomes of a generation, one for each index.

        Args:
            view: The space of the epoch.
            number: Number of the generation in the epoch, from 0.
            past: Effective COMPLETE and PRUNED trials of the epoch, in slot order.
            directions: Direction of each objective.

        Raises:
            ValueError: The seeds of the epoch do not fit its space or its population.
        """
        grid = LevelGrid.of(view)
        if number == 0:
            return self._first_generation(view, grid)
        past = [
            trial
            for trial in past
            if trial.state == TrialState.PRUNED or set(grid.names) <= set(trial.params)
        ]
        history = History.of(grid, past, directions)
        return self._later_generation(grid, view.epoch, number, history)

    @abstractmethod
    def _later_generation(
        self, grid: LevelGrid, epoch: int, number: int, history: History
    ) -> list[ProposedGenome]:
        """Propose a generation that is not the first of its epoch."""

    def _first_generation(self, view: SpaceView, grid: LevelGrid) -> list[ProposedGenome]:
        """Propose the seeds, then children of re-evaluated elites or scattered genomes."""
        self._check_seeds(view)
        seeds = [_seed_proposal(grid, seed) for seed in view.seeds]
        elites = [grid.genome(seed.params) for seed in view.seeds if seed.kind == "reeval"]
        pairing = _uniform_pairing(elites) if len(elites) > 1 else None
        known = {grid.genome(seed.params).tobytes() for seed in view.seeds}
        return seeds + self._fill(grid, view.epoch, 0, len(seeds), pairing, known)

    def _fill(
        self,
        grid: LevelGrid,
        epoch: int,
        number: int,
        start: int,
        pairing: Pairing | None,
        known: set[bytes],
    ) -> list[ProposedGenome]:
        """Fill a generation from index ``start`` on: children of a pairing, or scattered genomes.

        The proposed genomes are added to ``known``.
        """
        proposals = []
        for index in range(start, self.population_size):
            rng = random_stream(self.seed, "genome", epoch, number, index)
            if pairing is None:
                # Stratified, so that the population reaches from small to dense.
                centre = (index - start + rng.random()) / (self.population_size - start)
                genome = scatter(grid.top_levels, centre, self.variation.spread, rng)
            else:
                genome = _child(pairing(rng), grid, self.variation, rng)
            kind = "random" if pairing is None else "child"
            proposals.append(self._propose_near(kind, genome, grid, known, rng))
        return proposals

    def _propose_near(
        self,
        kind: str,
        genome: Genome,
        grid: LevelGrid,
        known: set[bytes],
        rng: np.random.Generator,
    ) -> ProposedGenome:
        """Propose a genome near ``genome`` that fits the budget and is not in ``known``."""
        eta = self.variation.mutation_eta
        genome = _unknown_neighbour(repair(genome, grid, rng), known, grid, eta, rng)
        known.add(genome.tobytes())
        return ProposedGenome(
            params=grid.params(genome), kind=kind, origin=None, violation=grid.constraint(genome)
        )

    def complete_user_genome(
        self, view: SpaceView, number: int, fixed: Mapping[str, int]
    ) -> dict[str, int]:
        """Draw the genes that an enqueued trial leaves open, within the budget if possible.

        Args:
            view: The space of the epoch.
            number: Number of the trial.
            fixed: The values that the user has fixed.
        """
        grid = LevelGrid.of(view)
        rng = random_stream(self.seed, "foreign", number)
        genome = scatter(grid.top_levels, rng.random(), self.variation.spread, rng)
        params = grid.params(genome) | {name: fixed[name] for name in grid.names if name in fixed}
        mask = np.array([name in fixed for name in grid.names], dtype=bool)
        return grid.params(repair(grid.genome(params), grid, rng, mask))

    def _check_seeds(self, view: SpaceView) -> None:
        if len(view.seeds) > self.population_size:
            raise ValueError(
                f"Epoch {view.epoch} has {len(view.seeds)} seeds, more than its population of "
                f"{self.population_size}."
            )
        for seed in view.seeds:
            if set(seed.params) != set(view.levels):
                differing = sorted(set(seed.params) ^ set(view.levels))
                raise ValueError(
                    f"A seed of epoch {view.epoch} differs from its space in the genes "
                    f"{differing}."
                )

    def _elite_pairing(self, history: History) -> Pairing | None:
        """Return a function that draws two parents by tournament; None below two genomes."""
        rows, elite = history.elite(self.population_size)
        if len(rows) < 2:
            return None

        def pair(rng: np.random.Generator) -> tuple[Genome, Genome]:
            size = len(elite.members)
            mother, father = tournament(elite, rng), tournament(elite, rng)
            if mother == father:  # crossing a genome with itself would only copy it
                father = (mother + int(rng.integers(1, size))) % size
            genomes = history.genomes
            return genomes[rows[elite.members[mother]]], genomes[rows[elite.members[father]]]

        return pair


class NSGAIIStrategy(GenerationStrategy):
    """Proposes children of the elite of all earlier generations of the epoch."""

    def _later_generation(
        self, grid: LevelGrid, epoch: int, number: int, history: History
    ) -> list[ProposedGenome]:
        pairing = self._elite_pairing(history)
        return self._fill(grid, epoch, number, 0, pairing, history.known_genomes)


def _child(
    parents: tuple[Genome, Genome], grid: LevelGrid, variation: Variation, rng: np.random.Generator
) -> Genome:
    n_genes = len(grid.top_levels)
    child = crossover(*parents, grid.top_levels, variation, rng)
    rate = variation.mutation_prob
    mask = rng.random(n_genes) < (1 / max(1, n_genes) if rate is None else rate)
    child = mutate(child, mask, grid.top_levels, variation.mutation_eta, rng)
    if np.isfinite(grid.budget) and rng.random() < variation.switch_prob:
        child = switch(child, grid, rng)
    return child


def _unknown_neighbour(
    genome: Genome, known: set[bytes], grid: LevelGrid, eta: float, rng: np.random.Generator
) -> Genome:
    """Mutate a genome, one gene at a time, until it is not in ``known``."""
    free_genes = grid.free_genes
    for _ in range(_MAX_MUTATIONS if len(free_genes) else 0):
        if genome.tobytes() not in known:
            break
        mask = np.arange(len(genome)) == rng.choice(free_genes)
        genome = repair(mutate(genome, mask, grid.top_levels, eta, rng), grid, rng)
    return genome


def _uniform_pairing(genomes: Sequence[Genome]) -> Pairing:
    """Return a function that draws two different genomes with equal probability."""

    def pair(rng: np.random.Generator) -> tuple[Genome, Genome]:
        mother, father = rng.choice(len(genomes), size=2, replace=False)
        return genomes[mother], genomes[father]

    return pair


def _seed_proposal(grid: LevelGrid, seed: Seed) -> ProposedGenome:
    params = {name: int(seed.params[name]) for name in grid.names}
    violation = grid.constraint(grid.genome(params))
    return ProposedGenome(params=params, kind=seed.kind, origin=seed.origin, violation=violation)
