"""Operators on genomes: scattering, crossover, mutation, level switch and repair.

All operators work on level *indices*, not on the widths behind them: levels are chosen for the
hardware and may be spaced unevenly, and a step up or down should be equally likely everywhere.
Every operator returns a new genome with ``0 <= genome <= top_levels``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from effllava_optuna.samplers._level_grid import Genome, LevelGrid

Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Variation:
    """How strongly children differ from their parents.

    Args:
        crossover_prob: Probability that a child has two parents; otherwise it copies one.
        crossover_gene_prob: Probability of each gene to be crossed in such a child.
        crossover_eta: Distribution index of SBX; a higher one stays closer to the parents.
        mutation_prob: Probability of each gene to mutate; None for one gene per child on average.
        mutation_eta: Distribution index of polynomial mutation; a higher one takes smaller steps.
        switch_prob: Probability that a child lowers one gene and raises another at about equal
            cost. Has an effect only if the space has a budget.
        spread: Half-width of the scatter of random genomes around their centre, as a fraction of
            the range of a gene.
    """

    crossover_prob: float = 0.9
    crossover_gene_prob: float = 0.5
    crossover_eta: float = 15.0
    mutation_prob: float | None = None
    mutation_eta: float = 20.0
    switch_prob: float = 0.3
    spread: float = 0.35

    def __post_init__(self) -> None:
        for name in ("crossover_prob", "crossover_gene_prob", "mutation_prob", "switch_prob"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be a probability in [0, 1], not {value}.")
        for name in ("crossover_eta", "mutation_eta", "spread"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}.")


def scatter(top_levels: Genome, centre: float, spread: float, rng: np.random.Generator) -> Genome:
    """Draw every gene from a triangular distribution around one common centre.

    Independent uniform genes would give genomes of about half the dense size only. With one centre
    per genome, a population reaches from small to dense.

    Args:
        top_levels: The highest index of each gene.
        centre: In [0, 1]: 0 the narrowest policy, 1 the dense one.
        spread: Half-width of the triangle, on the same scale.
        rng: Source of randomness.
    """
    low, high = max(0.0, centre - spread), min(1.0, centre + spread)
    return _round(rng.triangular(low, centre, high, size=len(top_levels)) * top_levels, top_levels)


def crossover(
    first: Genome,
    second: Genome,
    top_levels: Genome,
    variation: Variation,
    rng: np.random.Generator,
) -> Genome:
    """Create one child by simulated binary crossover within bounds (SBX).

    Deb & Agrawal 1995, "Simulated binary crossover for continuous search space"; the bounded form
    of Deb's NSGA-II code. Genes that are not crossed come from ``first``.
    """
    # The number of draws is the same for every pair: no decision shifts the stream of a later one.
    pair_draw, (gene_draws, u, side) = rng.random(), rng.random((3, len(top_levels)))
    if pair_draw >= variation.crossover_prob:
        return first.copy()
    low, high = np.minimum(first, second), np.maximum(first, second)
    gap = np.maximum(high - low, 1)
    below = _sbx_spread(1 + 2 * low / gap, u, variation.crossover_eta)
    above = _sbx_spread(1 + 2 * (top_levels - high) / gap, u, variation.crossover_eta)
    middle = (low + high) / 2
    crossed = np.where(side < 0.5, middle - below * gap / 2, middle + above * gap / 2)
    use_crossed = (gene_draws < variation.crossover_gene_prob) & (low != high)
    return np.where(use_crossed, _round(crossed, top_levels), first)


def _sbx_spread(beta: NDArray[np.float64], u: NDArray[np.float64], eta: float) -> np.ndarray:
    alpha = 2 - beta ** -(eta + 1)
    inside = u <= 1 / alpha
    base = np.where(inside, u * alpha, 1 / np.where(inside, 1.0, 2 - u * alpha))
    return np.asarray(base ** (1 / (eta + 1)))


def mutate(
    genome: Genome, mask: Mask, top_levels: Genome, eta: float, rng: np.random.Generator
) -> Genome:
    """Move the masked genes by polynomial mutation, each by at least one level.

    Deb & Agrawal 1999, "A niched-penalty approach for constraint handling in genetic algorithms",
    in the bounded form of Deb's NSGA-II code. With few levels most of its steps would round to
    zero; such a step becomes one level in its own direction.

    Args:
        genome: The genome to start from.
        mask: Shape ``(genes,)``, which genes to move. Genes with a single level stay.
        top_levels: The highest index of each gene.
        eta: Distribution index.
        rng: Source of randomness.
    """
    u = rng.random(len(top_levels))
    scale = np.maximum(top_levels, 1)
    position = genome / scale
    power = 1 / (eta + 1)
    down = (2 * u + (1 - 2 * u) * (1 - position) ** (eta + 1)) ** power - 1
    up = 1 - (2 * (1 - u) + (2 * u - 1) * position ** (eta + 1)) ** power
    moved = _round((position + np.where(u < 0.5, down, up)) * scale, top_levels)
    step = np.where((u < 0.5) & (genome > 0) | (genome >= top_levels), -1, 1)
    moved = np.where(moved == genome, genome + step, moved)
    return np.where(mask & (top_levels > 0), moved, genome)


def switch(genome: Genome, grid: LevelGrid, rng: np.random.Generator) -> Genome:
    """Lower one gene by a level and raise another so that the cost stays about the same.

    The level switch of EvoPress (Sieberling et al. 2024, arXiv:2410.14649) for levels of unequal
    cost: the raised gene moves by at least one level, to the one whose extra cost is nearest to
    what the lowered gene saves.
    """
    lowerable = np.flatnonzero(genome > 0)
    if not len(lowerable):
        return genome.copy()
    lowered = int(rng.choice(lowerable))
    raisable = np.flatnonzero(genome < grid.top_levels)
    raisable = raisable[raisable != lowered]
    if not len(raisable):
        return genome.copy()
    raised = int(rng.choice(raisable))
    child = genome.copy()
    child[lowered] -= 1
    if grid.condition in (lowered, raised):  # the costs of all other genes change
        child[raised] += 1 + int(np.argmin(_differences(genome, child, raised, grid)))
        return child
    costs = grid.costs_of(genome)
    saved = costs[lowered][genome[lowered]] - costs[lowered][genome[lowered] - 1]
    spent = costs[raised][genome[raised] + 1 :] - costs[raised][genome[raised]]
    child[raised] += 1 + int(np.abs(spent - saved).argmin())
    return child


def _differences(genome: Genome, child: Genome, raised: int, grid: LevelGrid) -> list[float]:
    """Return how far the cost of a child is from a genome's, for each higher level of a gene."""
    cost, differences = grid.cost(genome), []
    for level in range(int(child[raised]) + 1, int(grid.top_levels[raised]) + 1):
        higher = child.copy()
        higher[raised] = level
        differences.append(abs(grid.cost(higher) - cost))
    return differences


def repair(
    genome: Genome, grid: LevelGrid, rng: np.random.Generator, fixed: Mask | None = None
) -> Genome:
    """Lower random genes, one level at a time, until the genome fits the budget.

    Args:
        genome: The genome to repair.
        grid: Costs and budget.
        rng: Source of randomness.
        fixed: Shape ``(genes,)``, genes that keep their level; None for none.

    Returns:
        A genome within the budget; the narrowest genome if even that one is above it.
    """
    child = genome.copy()
    movable = np.ones(len(child), dtype=bool) if fixed is None else ~fixed
    while grid.violation(child) > 0:
        candidates = np.flatnonzero(movable & (child > 0))
        if not len(candidates):
            break
        child[rng.choice(candidates)] -= 1
    return child


def _round(positions: NDArray[np.float64], top_levels: Genome) -> Genome:
    return np.clip(np.rint(positions), 0, top_levels).astype(np.int64)
