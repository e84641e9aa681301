"""A whole generation as a pure function of what was measured before it."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import TrialState

from effllava_optuna.samplers import _compat
from effllava_optuna.samplers._operators import (
    Variation,
    crossover,
    mutate,
    repair,
    scatter,
    switch,
)
from effllava_optuna.samplers._selection import Elite, FloatArray, select, tournament
from effllava_optuna.samplers._slots import Slot, slot_of
from effllava_optuna.samplers._space import Genome, Grid, Seed, SpaceView

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Pairing: TypeAlias = Callable[[np.random.Generator], tuple[Genome, Genome]]

_PATIENCE = 50  # mutations before a child may repeat a genome: a space can be smaller than a study


@dataclass(frozen=True, slots=True)
class Proposal:
    """A genome to measure, and why.

    Args:
        params: One value for every gene.
        kind: ``"anchor"``, ``"reeval"`` (from the seeds), ``"random"``, ``"child"``; by CMA-ES
            also ``"sample"`` and ``"centre"``.
        origin: Number of the trial that is measured again.
        violation: Cost above the budget, negative within it; None where there is no budget.
    """

    params: Mapping[str, int]
    kind: str
    origin: int | None
    violation: float | None


def proposal_of(trial: FrozenTrial) -> Proposal:
    """Read what was proposed for the slot of a trial, however far the trial has come."""
    attrs, violations = trial.user_attrs, trial.system_attrs.get(_compat.CONSTRAINTS)
    return Proposal(
        trial.system_attrs.get(_compat.GENOME, trial.params),
        attrs["kind"],
        attrs.get("origin"),
        None if violations is None else violations[0],
    )


def stream(seed: int, purpose: str, *where: int) -> np.random.Generator:
    """Give one purpose at one place a random stream of its own, the same on every machine."""
    words = [seed, *where, zlib.crc32(purpose.encode())]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


@dataclass(frozen=True, slots=True)
class History:
    """What an epoch has measured, in slot order.

    Args:
        trials: COMPLETE trials.
        genomes: Of each trial.
        losses: Shape ``(trials, objectives)``; smaller is better.
        penalties: Shape ``(trials,)``; positive for infeasible trials.
        signs: Shape ``(objectives,)``; -1 for an objective that is maximised.
        places: Slot of each trial, ascending.
        stopped: Genomes of PRUNED trials: nobody breeds from them or measures them again.
    """

    trials: Sequence[FrozenTrial]
    genomes: Sequence[Genome]
    losses: FloatArray
    penalties: FloatArray
    signs: FloatArray
    places: Sequence[Slot] = ()
    stopped: Mapping[Slot, Genome] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        grid: Grid,
        trials: Sequence[FrozenTrial],
        directions: Sequence[StudyDirection],
    ) -> History:
        """Read trials that have a slot and all genes of a grid, COMPLETE or PRUNED."""
        stopped = [trial for trial in trials if trial.state == TrialState.PRUNED]
        trials = [trial for trial in trials if trial.state != TrialState.PRUNED]
        places = [slot for slot in map(slot_of, trials) if slot is not None]
        signs = np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in directions])
        values = np.array([trial.values for trial in trials], dtype=np.float64)
        return cls(
            trials,
            [grid.genome(trial.params) for trial in trials],
            signs * values.reshape(-1, len(directions)),
            np.array([_penalty(trial) for trial in trials], dtype=np.float64),
            signs,
            places,
            {
                slot: grid.genome(proposal_of(trial).params)
                for slot, trial in zip(map(slot_of, stopped), stopped, strict=True)
                if slot is not None
            },
        )

    def slots(self, generation: int | None = None) -> list[tuple[int, Slot]]:
        """Give the slot of each trial (of one generation), with its position."""
        places = enumerate(self.places)
        return [(row, slot) for row, slot in places if generation in (None, slot.generation)]

    def before(self, generation: int) -> History:
        """Give what the generations before one have measured."""
        end = bisect_left(self.places, generation, key=lambda slot: slot.generation)
        return History(
            self.trials[:end],
            self.genomes[:end],
            self.losses[:end],
            self.penalties[:end],
            self.signs,
            places=self.places[:end],
            stopped={
                slot: genome
                for slot, genome in self.stopped.items()
                if slot.generation < generation
            },
        )

    def worse(self, excess: float) -> FloatArray:
        """Give losses worse than all that was measured, the more so for a larger excess."""
        worst = self.losses.max(axis=0)
        span = worst - self.losses.min(axis=0)
        return np.asarray(worst + np.where(span > 0, span, 1.0) * (1 + excess))

    @property
    def key(self) -> bytes:
        """Give a digest of all that counts."""
        places = [dataclasses.astuple(slot) for slot in (*self.places, *self.stopped)]
        parts = [np.array(places).tobytes()]
        parts += [genome.tobytes() for genome in (*self.genomes, *self.stopped.values())]
        parts += [self.losses.tobytes(), self.penalties.tobytes()]
        return hashlib.sha256(b"".join(parts)).digest()

    @property
    def seen(self) -> set[bytes]:
        """Give the genomes that are measured or stopped as keys."""
        return {genome.tobytes() for genome in (*self.genomes, *self.stopped.values())}

    def elite(self, size: int) -> tuple[list[int], Elite]:
        """Select among different genomes.

        Returns:
            The first trial of each genome, by position, and an elite whose members are positions
            in that list.
        """
        first: dict[bytes, int] = {}
        for row, genome in enumerate(self.genomes):
            first.setdefault(genome.tobytes(), row)
        rows = list(first.values())
        return rows, select(self.losses[rows], self.penalties[rows], size)


@dataclass(frozen=True, slots=True)
class Breeder(ABC):
    """Proposes generations; what follows the first one is for its subclasses to say.

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
    ) -> list[Proposal]:
        """Propose the genomes of a generation, one for each index.

        Args:
            view: The space of the epoch.
            number: Which generation of the epoch, from 0.
            past: COMPLETE and PRUNED trials of the epoch that count, in slot order.
            directions: Of the objectives.
        """
        grid = Grid.of(view)
        if number == 0:
            seeds = self._check_seeds(view)
            proposals = [_seeded(grid, seed) for seed in seeds]
            reevals = [grid.genome(seed.params) for seed in seeds if seed.kind == "reeval"]
            pairing = _any_two(reevals) if len(reevals) > 1 else None
            seen = {grid.genome(seed.params).tobytes() for seed in seeds}
            return proposals + self._filled(grid, view.epoch, 0, len(seeds), pairing, seen)
        past = [
            trial
            for trial in past
            if trial.state == TrialState.PRUNED or set(grid.names) <= set(trial.params)
        ]
        history = History.of(grid, past, directions)
        return self._next(grid, view.epoch, number, history)

    @abstractmethod
    def _next(self, grid: Grid, epoch: int, number: int, history: History) -> list[Proposal]:
        """Propose a generation that is not the first of its epoch."""

    def _filled(
        self,
        grid: Grid,
        epoch: int,
        number: int,
        start: int,
        pairing: Pairing | None,
        seen: set[bytes],
    ) -> list[Proposal]:
        """Fill a generation from index ``start`` on: children of a pairing, or scattered genomes.

        Genomes are added to ``seen``.
        """
        proposals = []
        for index in range(start, self.population_size):
            rng = stream(self.seed, "genome", epoch, number, index)
            if pairing is None:
                share = (index - start + rng.random()) / (self.population_size - start)
                genome = scatter(grid.tops, share, self.variation.spread, rng)
            else:
                genome = self._child(pairing, grid, rng)
            kind = "random" if pairing is None else "child"
            proposals.append(self._new(kind, genome, grid, seen, rng))
        return proposals

    def _new(
        self, kind: str, genome: Genome, grid: Grid, seen: set[bytes], rng: np.random.Generator
    ) -> Proposal:
        """Propose a genome that fits the budget and that nobody has measured, near ``genome``."""
        genome = self._novel(repair(genome, grid, rng), seen, grid, rng)
        seen.add(genome.tobytes())
        return Proposal(grid.params(genome), kind, None, grid.bounded(genome))

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

    def _pairing(self, history: History) -> Pairing | None:
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


class NSGAIIBreeder(Breeder):
    """Breeds children from the elite of all earlier generations of the epoch."""

    def _next(self, grid: Grid, epoch: int, number: int, history: History) -> list[Proposal]:
        return self._filled(grid, epoch, number, 0, self._pairing(history), history.seen)


def _any_two(genomes: Sequence[Genome]) -> Pairing:
    def pair(rng: np.random.Generator) -> tuple[Genome, Genome]:
        mother, father = rng.choice(len(genomes), size=2, replace=False)
        return genomes[mother], genomes[father]

    return pair


def _seeded(grid: Grid, seed: Seed) -> Proposal:
    params = {name: int(seed.params[name]) for name in grid.names}
    return Proposal(params, seed.kind, seed.origin, grid.bounded(grid.genome(params)))


def _penalty(trial: FrozenTrial) -> float:
    return sum(max(0.0, violation) for violation in trial.constraints.values())
