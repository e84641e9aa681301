"""A whole generation as a pure function of what was measured before it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from optuna.study import StudyDirection

from effllava_optuna.samplers._operators import (
    Variation,
    crossover,
    mutate,
    repair,
    scatter,
    switch,
)
from effllava_optuna.samplers._selection import select, tournament
from effllava_optuna.samplers._space import Genome, Grid, Seed, SpaceView

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import FrozenTrial

Pairing: TypeAlias = Callable[[np.random.Generator], tuple[Genome, Genome]]

_PATIENCE = 50  # mutations before a child may repeat a genome: a space can be smaller than a study


@dataclass(frozen=True, slots=True)
class Proposal:
    """A genome to measure, and why.

    Args:
        params: One value for every gene.
        kind: ``"anchor"``, ``"reeval"`` (from the seeds), ``"random"`` or ``"child"``.
        origin: Number of the trial that is measured again.
        violation: Cost above the budget, negative within it; None where there is no budget.
    """

    params: Mapping[str, int]
    kind: str
    origin: int | None
    violation: float | None


def stream(seed: int, purpose: str, *where: int) -> np.random.Generator:
    """Give one purpose at one place a random stream of its own, the same on every machine."""
    words = [seed, *where, zlib.crc32(purpose.encode())]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


@dataclass(frozen=True, slots=True)
class Breeder:
    """Propose generations.

    Args:
        seed: Root of all randomness.
        population_size: Genomes in a generation, and parents that survive into the next.
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
    ) -> list[Proposal]:
        """Propose the genomes of a generation, one for each index.

        Args:
            view: The space of the epoch.
            number: Which generation of the epoch, from 0.
            past: COMPLETE trials of the earlier generations of the epoch, in slot order.
            directions: Of the objectives.
        """
        grid = Grid.of(view)
        if number == 0:
            seeds = self._check_seeds(view)
            reevals = [grid.genome(seed.params) for seed in seeds if seed.kind == "reeval"]
            pairing = _any_two(reevals) if len(reevals) > 1 else None
            measured = [grid.genome(seed.params) for seed in seeds]
        else:
            seeds = ()
            past = [trial for trial in past if set(grid.names) <= set(trial.params)]
            measured = [grid.genome(trial.params) for trial in past]
            pairing = self._pairing(measured, past, directions)
        proposals = [_seeded(grid, seed) for seed in seeds]
        seen = {genome.tobytes() for genome in measured}
        for index in range(len(seeds), self.population_size):
            rng = stream(self.seed, "genome", view.epoch, number, index)
            if pairing is None:
                share = (index - len(seeds) + rng.random()) / (self.population_size - len(seeds))
                start = scatter(grid.tops, share, self.variation.spread, rng)
            else:
                start = self._child(pairing, grid, rng)
            genome = self._novel(repair(start, grid, rng), seen, grid, rng)
            seen.add(genome.tobytes())
            kind = "random" if pairing is None else "child"
            proposals.append(Proposal(grid.params(genome), kind, None, _violation(grid, genome)))
        return proposals

    def foreign(self, view: SpaceView, number: int, fixed: Mapping[str, int]) -> dict[str, int]:
        """Fill up a genome of which a user has fixed some genes, within the budget if possible."""
        grid = Grid.of(view)
        rng = stream(self.seed, "foreign", number)
        genome = scatter(grid.tops, rng.random(), self.variation.spread, rng)
        params = grid.params(genome) | {name: fixed[name] for name in grid.names if name in fixed}
        mask = np.array([name in fixed for name in grid.names], dtype=bool)
        return grid.params(repair(grid.genome(params), grid, rng, mask))

    def _check_seeds(self, view: SpaceView) -> Sequence[Seed]:
        if len(view.seeds) > self.population_size:
            raise ValueError(
                f"Epoch {view.epoch} has {len(view.seeds)} seeds, more than its population of "
                f"{self.population_size}."
            )
        for seed in view.seeds:
            if set(seed.params) != set(view.levels):
                unlike = sorted(set(seed.params) ^ set(view.levels))
                raise ValueError(f"A seed of epoch {view.epoch} differs in its genes: {unlike}.")
        return view.seeds

    def _pairing(
        self,
        genomes: Sequence[Genome],
        trials: Sequence[FrozenTrial],
        directions: Sequence[StudyDirection],
    ) -> Pairing | None:
        first: dict[bytes, int] = {}
        for row, genome in enumerate(genomes):
            first.setdefault(genome.tobytes(), row)
        rows = list(first.values())
        if len(rows) < 2:
            return None
        signs = np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in directions])
        losses = signs * np.array([trials[row].values for row in rows], dtype=np.float64)
        penalties = np.array([_penalty(trials[row]) for row in rows])
        elite = select(losses, penalties, self.population_size)

        def pair(rng: np.random.Generator) -> tuple[Genome, Genome]:
            size = len(elite.members)
            mother, father = tournament(elite, rng), tournament(elite, rng)
            if mother == father:  # crossing a genome with itself would only copy it
                father = (mother + int(rng.integers(1, size))) % size
            return genomes[rows[elite.members[mother]]], genomes[rows[elite.members[father]]]

        return pair

    def _child(self, pairing: Pairing, grid: Grid, rng: np.random.Generator) -> Genome:
        variation, genes = self.variation, len(grid.tops)
        child = crossover(*pairing(rng), grid.tops, variation, rng)
        rate = variation.mutation_prob
        mask = rng.random(genes) < (1 / max(1, genes) if rate is None else rate)
        child = mutate(child, mask, grid.tops, variation.mutation_eta, rng)
        if np.isfinite(grid.budget) and rng.random() < variation.switch_prob:
            child = switch(child, grid, rng)
        return child

    def _novel(
        self, genome: Genome, seen: set[bytes], grid: Grid, rng: np.random.Generator
    ) -> Genome:
        """Walk on from a genome, a gene at a time, until it is one that nobody has measured."""
        free = np.flatnonzero(grid.tops > 0)
        for _ in range(_PATIENCE if len(free) else 0):
            if genome.tobytes() not in seen:
                break
            mask = np.arange(len(genome)) == rng.choice(free)
            genome = mutate(genome, mask, grid.tops, self.variation.mutation_eta, rng)
            genome = repair(genome, grid, rng)
        return genome


def _any_two(genomes: Sequence[Genome]) -> Pairing:
    def pair(rng: np.random.Generator) -> tuple[Genome, Genome]:
        mother, father = rng.choice(len(genomes), size=2, replace=False)
        return genomes[mother], genomes[father]

    return pair


def _seeded(grid: Grid, seed: Seed) -> Proposal:
    params = {name: int(seed.params[name]) for name in grid.names}
    return Proposal(params, seed.kind, seed.origin, _violation(grid, grid.genome(params)))


def _violation(grid: Grid, genome: Genome) -> float | None:
    return grid.violation(genome) if np.isfinite(grid.budget) else None


def _penalty(trial: FrozenTrial) -> float:
    return sum(max(0.0, violation) for violation in trial.constraints.values())
