"""Generations as pure functions of what was measured before them."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from optuna.trial import TrialState

from effllava_optuna.samplers._level_grid import Genome, LevelGrid, Seed, SpaceView
from effllava_optuna.samplers._proposals._history import History, ProposedGenome
from effllava_optuna.samplers._proposals._operators import (
    Variation,
    crossover,
    mutate,
    repair,
    scatter,
    switch,
)
from effllava_optuna.samplers._proposals._selection import tournament
from effllava_optuna.samplers._slots import slot_of

if TYPE_CHECKING:
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

    from effllava_optuna.samplers._proposals._screening import Screening

Pairing: TypeAlias = Callable[[np.random.Generator], tuple[Genome, Genome]]

# Mutations before a child may repeat a genome: a space can have fewer genomes than a study trials.
_MAX_MUTATIONS = 50

_CHILDREN = 0.5  # share of the candidates that have two parents
_MOST_SWITCHES = 3  # of a candidate with one parent


def random_stream(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """Return the random stream of one purpose at one position, the same on every machine.

    The purpose is part of the seed: renaming one changes every search.
    """
    words = [seed, *position, zlib.crc32(purpose.encode())]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """A generation to propose, and all that it may depend on.

    Args:
        view: The space of the epoch.
        grid: The same in arrays.
        number: Number of the generation in the epoch, from 0.
        first: Number of the first generation that neither seeds nor an allocation begin.
        history: What the earlier generations of the epoch have measured.
        comparable: COMPLETE trials of other epochs whose measured values count in this one.
        past: The trials of the history, in slot order.
        opening: The COMPLETE trials of the seeds, then ``comparable``: what curves are computed
            from. Empty while the seeds are measured.
    """

    view: SpaceView
    grid: LevelGrid
    number: int
    first: int
    history: History
    comparable: Sequence[FrozenTrial] = ()
    past: Sequence[FrozenTrial] = ()
    opening: Sequence[FrozenTrial] = ()


@dataclass(frozen=True, slots=True)
class GenerationStrategy(ABC):
    """Proposes generations; subclasses define those after the first ones of an epoch.

    Args:
        seed: Root of all randomness.
        population_size: Genomes in a generation.
        variation: Parameters of the operators.
        screening: How children are chosen from many candidates; None: the first ones are taken.
    """

    seed: int
    population_size: int
    variation: Variation
    screening: Screening | None

    def generation(
        self,
        view: SpaceView,
        number: int,
        past: Sequence[FrozenTrial],
        directions: Sequence[StudyDirection],
        comparable: Sequence[FrozenTrial] = (),
    ) -> list[ProposedGenome]:
        """Propose the genomes of a generation, one for each index.

        Args:
            view: The space of the epoch.
            number: Number of the generation in the epoch, from 0.
            past: Effective COMPLETE and PRUNED trials of the epoch, in slot order.
            directions: Direction of each objective.
            comparable: COMPLETE trials of other epochs with values that count in this one.

        Raises:
            ValueError: The seeds of the epoch, or the allocated genomes, do not fit its space.
        """
        grid = LevelGrid.of(view)
        past = [
            trial
            for trial in past
            if trial.state == TrialState.PRUNED or set(grid.names) <= set(trial.params)
        ]
        seeded = max(1, -(-len(view.seeds) // self.population_size))
        history = History.of(grid, past, directions)
        if number < seeded:
            task = GenerationTask(view, grid, number, seeded, history, comparable, past)
            return self._seeded_generation(task)
        measured = _seed_trials(past, seeded)
        opening = [*measured, *comparable]
        allocated = _allocated_genomes(view, grid, measured, opening)
        start = (number - seeded) * self.population_size
        first = seeded + -(-len(allocated) // self.population_size)
        task = GenerationTask(view, grid, number, first, history, comparable, past, opening)
        if number < first:
            return self._allocated_generation(
                task, allocated[start : start + self.population_size]
            )
        return self._later_generation(task)

    @abstractmethod
    def _later_generation(self, task: GenerationTask) -> list[ProposedGenome]:
        """Propose a generation after the seeds and the allocated genomes of its epoch."""

    def _seeded_generation(self, task: GenerationTask) -> list[ProposedGenome]:
        """Propose seeds, then children of elites and allocated genomes, or scattered genomes."""
        view, grid = task.view, task.grid
        _check_seeds(view, view.seeds)
        start = task.number * self.population_size
        seeds = view.seeds[start : start + self.population_size]
        parents = [seed for seed in view.seeds if seed.kind in ("reeval", "allocated")]
        elites = [grid.genome(seed.params) for seed in parents]
        pairing = _uniform_pairing(elites) if len(elites) > 1 else None
        known = {grid.genome(seed.params).tobytes() for seed in view.seeds}
        proposals = [_seed_proposal(grid, seed) for seed in seeds]
        return proposals + self._fill(task, len(seeds), pairing, known)

    def _allocated_generation(
        self, task: GenerationTask, allocated: Sequence[Seed]
    ) -> list[ProposedGenome]:
        """Propose allocated genomes, then children."""
        proposals = [_seed_proposal(task.grid, seed) for seed in allocated]
        known = task.history.known_genomes
        known.update(task.grid.genome(seed.params).tobytes() for seed in allocated)
        return proposals + self._fill(
            task, len(proposals), self._elite_pairing(task.history), known
        )

    def _fill(
        self, task: GenerationTask, start: int, pairing: Pairing | None, known: set[bytes]
    ) -> list[ProposedGenome]:
        """Fill a generation from index ``start`` on: children of a pairing, or scattered genomes.

        The proposed genomes are added to ``known``.
        """
        epoch, number, grid = task.view.epoch, task.number, task.grid
        proposals = self._screened(task, start, pairing, known)
        for index in range(start + len(proposals), self.population_size):
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

    def _screened(
        self, task: GenerationTask, start: int, pairing: Pairing | None, known: set[bytes]
    ) -> list[ProposedGenome]:
        """Choose children from a pool of candidates; none without screening or parents."""
        count = self.population_size - start
        if self.screening is None or pairing is None or count == 0:
            return []
        position = (task.view.epoch, task.number)
        rng = random_stream(self.seed, "candidates", *position)
        pool: dict[bytes, Genome] = {}
        for _ in range(self.screening.candidates * count):
            genome = self._candidate(task.grid, pairing, rng)
            if genome.tobytes() not in known:
                pool.setdefault(genome.tobytes(), genome)
        candidates = [*pool.values()]
        indices = range(start, self.population_size)
        streams = [random_stream(self.seed, "screening", *position, index) for index in indices]
        chosen = self.screening.choose(task, candidates, streams) if candidates else None
        proposals = []
        for one in chosen or ():
            genome = candidates[one]
            known.add(genome.tobytes())
            violation = task.grid.constraint(genome)
            proposals.append(ProposedGenome(task.grid.params(genome), "screened", None, violation))
        return proposals

    def _candidate(self, grid: LevelGrid, pairing: Pairing, rng: np.random.Generator) -> Genome:
        """Draw a child of two parents, or a parent with a few level switches."""
        parents = pairing(rng)
        if rng.random() < _CHILDREN:
            genome = _child(parents, grid, self.variation, rng)
        else:
            genome = parents[0]
            for _ in range(int(rng.integers(1, _MOST_SWITCHES + 1))):
                genome = switch(genome, grid, rng)
        return repair(genome, grid, rng)

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

    def _later_generation(self, task: GenerationTask) -> list[ProposedGenome]:
        pairing = self._elite_pairing(task.history)
        return self._fill(task, 0, pairing, task.history.known_genomes)


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


def _seed_trials(past: Sequence[FrozenTrial], seeded: int) -> list[FrozenTrial]:
    """Return the COMPLETE trials of the generations with seeds.

    Args:
        past: COMPLETE and PRUNED trials of the epoch.
        seeded: Number of generations with seeds.
    """
    slots = [(slot_of(trial), trial) for trial in past if trial.state == TrialState.COMPLETE]
    return [trial for slot, trial in slots if slot is not None and slot.generation < seeded]


def _allocated_genomes(
    view: SpaceView,
    grid: LevelGrid,
    measured: Sequence[FrozenTrial],
    opening: Sequence[FrozenTrial],
) -> list[Seed]:
    """Return what the allocation computes from the seeds, without the genomes of the seeds.

    Args:
        view: The space of the epoch.
        grid: The same in arrays.
        measured: COMPLETE trials of the seeds.
        opening: The same, and trials of other epochs with values that count in this one.
    """
    if view.allocation is None:
        return []
    proposed = view.allocation(opening)
    _check_seeds(view, proposed)
    known = {grid.genome(trial.params).tobytes() for trial in measured}
    return [seed for seed in proposed if grid.genome(seed.params).tobytes() not in known]


def _check_seeds(view: SpaceView, seeds: Sequence[Seed]) -> None:
    for seed in seeds:
        if set(seed.params) != set(view.levels):
            differing = sorted(set(seed.params) ^ set(view.levels))
            raise ValueError(
                f"A seed of epoch {view.epoch} differs from its space in the genes {differing}."
            )


def _seed_proposal(grid: LevelGrid, seed: Seed) -> ProposedGenome:
    params = {name: int(seed.params[name]) for name in grid.names}
    violation = grid.constraint(grid.genome(params))
    return ProposedGenome(params=params, kind=seed.kind, origin=seed.origin, violation=violation)
