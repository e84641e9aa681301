"""CMA-ES over epochs, as an Optuna sampler: for two objectives, or for one within a limit.

The state of an optimiser is never stored. It is replayed, for each generation anew, from what
the earlier generations of the epoch measured: that is cheap, and nothing has to be unpickled.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from cmaes import CatCMAwM, COMOCatCMAwM, SepCMA

from effllava_optuna.samplers._breeding import Breeder, History, Proposal, stream
from effllava_optuna.samplers._operators import Variation
from effllava_optuna.samplers._sampler import EpochSampler
from effllava_optuna.samplers._slots import Slot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.samplers._selection import FloatArray
    from effllava_optuna.samplers._space import Genome, Grid, SpaceProvider

_DEFAULT_VARIATION = Variation()
_FEWEST = 5  # slots: of four samples CMA-ES learns something, of three its weights are undefined


class EpochCMASampler(EpochSampler):
    """CMA-ES over epochs; see `EpochSampler` for what it promises.

    With two objectives and no limit it is COMO-CatCMA with margin (arXiv:2504.07884): a few
    kernels, each of which improves the hypervolume that the means of the others leave to it. With
    one objective, or with two and a limit on the second, it is separable CMA-ES (Ros & Hansen
    2008) on the first; trials beyond the limit rank behind all within it, by how far they are off.

    The first generation of an epoch is as in `EpochNSGAIISampler`: anchors, or the elites measured
    again and their children. The kernels begin at the best of what it found, with a fresh step
    size. Each later generation updates one kernel; a generation of 12 to 20 is a good size. A
    genome that has to be repaired is told to the optimiser as it was measured. A slot that failed
    for good, one that was pruned, and a trial above the budget, are told something worse than all
    that was measured.

    Args:
        space: Tells the space of the current epoch. None for a plain random sampler.
        population_size: Slots in a generation, at least 5.
        generations: Planned generations in an epoch. Where the space stays the same after them,
            the search goes on in the same epoch.
        seed: Root of all randomness, not negative.
        kernels: Means that share the front between them (two objectives), at least 2.
        step_size: Initial standard deviation of a gene, as a share of its range, in (0, 1].
        limit: Bound on the second objective, on its own scale; None for none.
        variation: Parameters of the operators of the first generation.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        space: SpaceProvider | None,
        *,
        population_size: int = 20,
        generations: int = 4,
        seed: int = 0,
        kernels: int = 3,
        step_size: float = 0.2,
        limit: float | None = None,
        variation: Variation = _DEFAULT_VARIATION,
    ) -> None:
        if population_size < _FEWEST:
            raise ValueError(f"population_size must be at least {_FEWEST}, not {population_size}.")
        if kernels < 2:
            raise ValueError(f"kernels must be at least 2, not {kernels}.")
        if not 0 < step_size <= 1:
            raise ValueError(f"step_size must be in (0, 1], not {step_size}.")
        breeder = CMABreeder(seed, population_size, variation, kernels, step_size, limit)
        super().__init__(space, breeder, generations=generations)


@dataclass(frozen=True, slots=True)
class CMABreeder(Breeder):
    """Proposes what a replayed CMA-ES asks for.

    Args:
        kernels: Of the optimiser for two objectives.
        step_size: Initial standard deviation, as a share of a gene's range.
        limit: Bound on the second objective; None for none.
        live: By epoch, the optimiser that was replayed last: it need not be replayed again.
    """

    kernels: int
    step_size: float
    limit: float | None
    live: dict[int, Live] = field(default_factory=dict, compare=False, repr=False)

    def _next(self, grid: Grid, epoch: int, number: int, history: History) -> list[Proposal]:
        seen, pairing = history.seen, self._pairing(history)
        optimiser = self.replayed(grid, epoch, number, history)
        proposals = []
        if optimiser is not None:
            for index, sample in enumerate(optimiser.ask()):
                rng = stream(self.seed, "genome", epoch, number, index)
                proposals.append(self._new(sample.kind, sample.genome, grid, seen, rng))
        return proposals + self._filled(grid, epoch, number, len(proposals), pairing, seen)

    def replayed(
        self, grid: Grid, epoch: int, number: int, history: History
    ) -> Swarm | Separable | None:
        """Give the optimiser as it stands before generation ``number``, from 1.

        None where there is nothing to optimise: no free gene but one, or no result to begin at.
        """
        opening = history.before(1)
        if (grid.tops > 0).sum() < 2 or not opening.trials:
            return None
        live = self.live.pop(epoch, None)
        if live is not None and live.is_of(history, number):
            begin, optimiser = live.generation, live.optimiser
        else:
            begin, optimiser = 1, self._begun(grid, epoch, opening)
        for generation in range(begin, number):
            known = history.before(generation + 1)
            rows = {slot.index: row for row, slot in known.slots(generation)}
            told = []
            for index, sample in enumerate(optimiser.ask()):
                row = rows.get(index)
                if row is None:
                    place = Slot(epoch, generation, index)
                    told.append((known.stopped.get(place, sample.genome), known.worse(0.0)))
                else:
                    bad = known.penalties[row] > 0
                    losses = known.worse(known.penalties[row]) if bad else known.losses[row]
                    told.append((known.genomes[row], losses))
            optimiser.tell(told)
        self.live[epoch] = Live(number, history.before(number).key, optimiser)
        return optimiser

    def _begun(self, grid: Grid, epoch: int, opening: History) -> Swarm | Separable:
        """Begin at the best of the first generation."""
        seed = int(stream(self.seed, "optimiser", epoch).integers(2**31))
        objectives = opening.losses.shape[1]
        limit = self.limit if objectives == 2 else None
        if objectives == 1 or limit is not None:
            rule = Rule(None if limit is None else float(opening.signs[1] * limit))

            def merit(row: int) -> tuple[float, float, float]:
                return opening.penalties[row], *rule.key(opening.losses[row])

            best = min(range(len(opening.trials)), key=merit)
            return Separable(
                grid.tops, opening.genomes[best], rule, self.step_size, self.population_size, seed
            )
        if objectives != 2:
            raise ValueError(f"CMA-ES takes one or two objectives, not {objectives}.")
        rows, elite = opening.elite(self.kernels)
        starts = [rows[member] for member in elite.members]
        return Swarm(
            grid.tops,
            [opening.genomes[row] for row in starts],
            opening.losses[starts],
            self.step_size,
            self.population_size - 1,  # the last slot is for the mean of the kernel before
            seed,
        )


@dataclass(frozen=True, slots=True)
class Live:
    """An optimiser, and what it has been told.

    Args:
        generation: Of the samples that it asks for.
        key: Of the history before that.
        optimiser: The optimiser.
    """

    generation: int
    key: bytes
    optimiser: Swarm | Separable

    def is_of(self, history: History, number: int) -> bool:
        """Tell whether the optimiser may go on to generation ``number`` of ``history``."""
        if self.generation > number:
            return False
        return history.before(self.generation).key == self.key


@dataclass(frozen=True, slots=True)
class Sample:
    """What an optimiser wants measured.

    Args:
        genome: Shape ``(genes,)``, level indices.
        kind: ``"sample"``, or ``"centre"`` for the mean of a kernel.
    """

    genome: Genome
    kind: str


class Swarm:
    """COMO-CatCMA with margin on level indices, for two objectives that are minimised.

    Args:
        tops: The highest index of each gene; two genes at least have more than one level.
        starts: The first means.
        losses: Shape ``(starts, 2)``, what was measured there.
        step_size: Initial standard deviation, as a share of a gene's range.
        samples: Of a kernel between two of its updates.
        seed: Of all that is drawn.
    """

    def __init__(
        self,
        tops: Genome,
        starts: Sequence[Genome],
        losses: FloatArray,
        step_size: float,
        samples: int,
        seed: int,
    ) -> None:
        self._tops = tops
        self._free = np.flatnonzero(tops > 0)
        levels = [list(range(int(top) + 1)) for top in tops[self._free]]
        covariance = np.diag((step_size * tops[self._free]) ** 2.0)
        kernels = [
            CatCMAwM(
                z_space=levels,
                population_size=samples,
                mean=start[self._free].astype(np.float64),
                cov=covariance.copy(),
            )
            for start in starts
        ]
        self.optimiser = COMOCatCMAwM(z_space=levels, kernels=kernels, seed=seed)
        # The means are measured already.
        queue = list(self.optimiser.ask_iter())
        known = [item for item in queue if item._incumbent_id is not None]
        self._batch = [item for item in queue if item._incumbent_id is None]
        self.optimiser.tell([(item, losses[item._incumbent_id]) for item in known])

    def ask(self) -> list[Sample]:
        """Give what is to be measured before the next `tell`; the same until then."""
        self._batch += self.optimiser.ask_iter()
        found = []
        for item in self._batch:
            genome = np.zeros(len(self._tops), dtype=np.int64)
            genome[self._free] = np.rint(item.z)
            found.append(Sample(genome, "sample" if item._incumbent_id is None else "centre"))
        return found

    def tell(self, measured: Sequence[tuple[Genome, FloatArray]]) -> None:
        """Take in what was measured, in the order of `ask`; genomes may have been repaired."""
        told = []
        for item, (genome, losses) in zip(self._batch, measured, strict=True):
            levels = genome[self._free].astype(np.float64)
            moved = levels != np.rint(item.z)
            raw = np.where(moved, levels, item._v_raw)
            told.append((dataclasses.replace(item, z=levels, _v_raw=raw), losses))
        self._batch = []
        self.optimiser.tell(told)


@dataclass(frozen=True, slots=True)
class Rule:
    """Which of two trials is better, where only the first objective counts, within a limit.

    Args:
        limit: Largest loss in the second objective; None: there is none.
    """

    limit: float | None

    def key(self, losses: FloatArray) -> tuple[float, float]:
        """Give what is smaller for the better one (Deb 2000)."""
        excess = 0.0 if self.limit is None else max(0.0, float(losses[1]) - self.limit)
        return excess, float(losses[0])


class Separable:
    """Separable CMA-ES on level indices, for one objective within a limit.

    Each gene of each sample is moved by a level with a small chance, so that none is stuck on a
    level for good when its variance has shrunk (after the margin of Hamano et al. 2022).

    Args:
        tops: The highest index of each gene; two genes at least have more than one level.
        start: The first mean.
        rule: Tells the better of two.
        step_size: Initial standard deviation, as a share of a gene's range.
        samples: Of a generation.
        seed: Of all that is drawn.
    """

    def __init__(
        self, tops: Genome, start: Genome, rule: Rule, step_size: float, samples: int, seed: int
    ) -> None:
        self._tops = tops
        self._free = np.flatnonzero(tops > 0)
        self._scale = tops[self._free].astype(np.float64)
        self._rule = rule
        self._rng = stream(seed, "margin")
        half = 0.5 / self._scale
        self.optimiser = SepCMA(
            mean=start[self._free] / self._scale,
            sigma=step_size,
            bounds=np.stack([-half, 1 + half], axis=1),
            population_size=samples,
            seed=seed,
        )
        self._batch: list[tuple[FloatArray, Genome]] = []

    def ask(self) -> list[Sample]:
        """Give what is to be measured before the next `tell`; the same until then."""
        for _ in range(self.optimiser.population_size - len(self._batch)):
            position = self.optimiser.ask()
            levels = np.clip(np.rint(position * self._scale), 0, self._scale).astype(np.int64)
            chance = 1 / (len(levels) * self.optimiser.population_size)
            step = np.where(self._rng.random(len(levels)) < 0.5, -1, 1)
            step[levels == 0], step[levels == self._scale] = 1, -1
            levels = np.where(self._rng.random(len(levels)) < chance, levels + step, levels)
            self._batch.append((position, levels))
        found = []
        for _, levels in self._batch:
            genome = np.zeros(len(self._tops), dtype=np.int64)
            genome[self._free] = levels
            found.append(Sample(genome, "sample"))
        return found

    def tell(self, measured: Sequence[tuple[Genome, FloatArray]]) -> None:
        """Take in what was measured, in the order of `ask`; genomes may have been repaired."""
        keys = [self._rule.key(losses) for _, losses in measured]
        ranks = {key: rank for rank, key in enumerate(sorted(set(keys)))}
        told = []
        for (position, _), (genome, _), key in zip(self._batch, measured, keys, strict=True):
            levels = genome[self._free]
            moved = levels != np.rint(position * self._scale)
            point = np.where(moved, levels / self._scale, position)
            told.append((point, float(ranks[key])))
        self._batch = []
        self.optimiser.tell(told)
