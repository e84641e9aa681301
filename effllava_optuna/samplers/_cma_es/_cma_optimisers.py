"""Two CMA-ES optimisers on level indices, with one interface: `ask`, then `tell`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from cmaes import CatCMAwM, COMOCatCMAwM, SepCMA

from effllava_optuna.samplers._proposals._generation_strategy import random_stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.samplers._level_grid import Genome
    from effllava_optuna.samplers._proposals._selection import FloatArray


@dataclass(frozen=True, slots=True)
class CmaSample:
    """A genome that an optimiser asks to measure.

    Args:
        genome: Shape ``(genes,)``, level indices.
        kind: ``"sample"``, or ``"centre"`` for the mean of a kernel.
    """

    genome: Genome
    kind: str


class MultiObjectiveCma:
    """COMO-CatCMA with margin on level indices, for two objectives that are minimised.

    Args:
        top_levels: The highest index of each gene; at least two genes have several levels.
        starts: The first mean of each kernel.
        losses: Shape ``(starts, 2)``, losses of the first means.
        step_size: Initial standard deviation, as a fraction of the range of a gene.
        samples: Samples of a kernel between two of its updates.
        seed: Seed of all draws.
    """

    def __init__(
        self,
        top_levels: Genome,
        starts: Sequence[Genome],
        losses: FloatArray,
        step_size: float,
        samples: int,
        seed: int,
    ) -> None:
        self._n_genes = len(top_levels)
        self._free_genes = np.flatnonzero(top_levels > 0)
        free_tops = top_levels[self._free_genes]
        levels = [list(range(int(top) + 1)) for top in free_tops]
        covariance = np.diag((step_size * free_tops) ** 2.0)
        kernels = [
            CatCMAwM(
                z_space=levels,
                population_size=samples,
                mean=start[self._free_genes].astype(np.float64),
                cov=covariance.copy(),
            )
            for start in starts
        ]
        self.optimiser = COMOCatCMAwM(z_space=levels, kernels=kernels, seed=seed)
        # The optimiser first asks for its means, which have been measured already.
        solutions = list(self.optimiser.ask_iter())
        means = [item for item in solutions if item._incumbent_id is not None]
        self._asked = [item for item in solutions if item._incumbent_id is None]
        self.optimiser.tell([(mean, losses[mean._incumbent_id]) for mean in means])

    def ask(self) -> list[CmaSample]:
        """Return what to measure before the next `tell`; the same samples until then."""
        self._asked += self.optimiser.ask_iter()
        samples = []
        for solution in self._asked:
            genome = np.zeros(self._n_genes, dtype=np.int64)
            genome[self._free_genes] = np.rint(solution.z)
            kind = "sample" if solution._incumbent_id is None else "centre"
            samples.append(CmaSample(genome, kind))
        return samples

    def tell(self, measured: Sequence[tuple[Genome, FloatArray]]) -> None:
        """Update from genomes (perhaps repaired) and their losses, in the order of `ask`."""
        results = []
        for solution, (genome, losses) in zip(self._asked, measured, strict=True):
            levels = genome[self._free_genes].astype(np.float64)
            repaired = levels != np.rint(solution.z)
            raw = np.where(repaired, levels, solution._v_raw)
            results.append((dataclasses.replace(solution, z=levels, _v_raw=raw), losses))
        self._asked = []
        self.optimiser.tell(results)


@dataclass(frozen=True, slots=True)
class ConstrainedOrder:
    """An order of trials by the first objective, within a limit on the second.

    Args:
        limit: Largest loss in the second objective; None: no limit.
    """

    limit: float | None

    def key(self, losses: FloatArray) -> tuple[float, float]:
        """Return a sort key that is smaller for the better trial (Deb 2000)."""
        excess = 0.0 if self.limit is None else max(0.0, float(losses[1]) - self.limit)
        return excess, float(losses[0])


class SeparableCma:
    """Separable CMA-ES on level indices, for one objective within a limit.

    Each gene of each sample moves by one level with a small probability, so that no gene stays on
    a level for good when its variance has shrunk (after the margin of Hamano et al. 2022).

    Args:
        top_levels: The highest index of each gene; at least two genes have several levels.
        start: The first mean.
        order: The order of the trials.
        step_size: Initial standard deviation, as a fraction of the range of a gene.
        samples: Samples of a generation.
        seed: Seed of all draws.
    """

    def __init__(
        self,
        top_levels: Genome,
        start: Genome,
        order: ConstrainedOrder,
        step_size: float,
        samples: int,
        seed: int,
    ) -> None:
        self._n_genes = len(top_levels)
        self._free_genes = np.flatnonzero(top_levels > 0)
        self._scale = top_levels[self._free_genes].astype(np.float64)
        self._order = order
        self._rng = random_stream(seed, "margin")
        half_level = 0.5 / self._scale
        self.optimiser = SepCMA(
            mean=start[self._free_genes] / self._scale,
            sigma=step_size,
            bounds=np.stack([-half_level, 1 + half_level], axis=1),
            population_size=samples,
            seed=seed,
        )
        self._asked: list[tuple[FloatArray, Genome]] = []

    def ask(self) -> list[CmaSample]:
        """Return what to measure before the next `tell`; the same samples until then."""
        for _ in range(self.optimiser.population_size - len(self._asked)):
            position = self.optimiser.ask()
            levels = np.clip(np.rint(position * self._scale), 0, self._scale).astype(np.int64)
            probability = 1 / (len(levels) * self.optimiser.population_size)
            step = np.where(self._rng.random(len(levels)) < 0.5, -1, 1)
            step[levels == 0], step[levels == self._scale] = 1, -1
            levels = np.where(self._rng.random(len(levels)) < probability, levels + step, levels)
            self._asked.append((position, levels))
        samples = []
        for _, levels in self._asked:
            genome = np.zeros(self._n_genes, dtype=np.int64)
            genome[self._free_genes] = levels
            samples.append(CmaSample(genome, "sample"))
        return samples

    def tell(self, measured: Sequence[tuple[Genome, FloatArray]]) -> None:
        """Update from genomes (perhaps repaired) and their losses, in the order of `ask`."""
        keys = [self._order.key(losses) for _, losses in measured]
        ranks = {key: rank for rank, key in enumerate(sorted(set(keys)))}
        results = []
        for (position, _), (genome, _), key in zip(self._asked, measured, keys, strict=True):
            levels = genome[self._free_genes]
            moved = levels != np.rint(position * self._scale)
            point = np.where(moved, levels / self._scale, position)
            results.append((point, float(ranks[key])))
        self._asked = []
        self.optimiser.tell(results)
