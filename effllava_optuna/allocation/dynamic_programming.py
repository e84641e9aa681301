"""Optimal allocation over additive sensitivity curves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from effllava_optuna.allocation.feasible import feasible_policy
from effllava_optuna.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from effllava_optuna.allocation.sensitivity import Sensitivity
    from effllava_optuna.policy import CostModel, Space

    _Problem: TypeAlias = tuple[Sensitivity, CostModel]

_LIMITS_PER_POLICY = 4  # neighbouring limits often have the same policy


def dynamic_programming(
    space: Space, sensitivity: Sensitivity, costs: CostModel, *, cells: int = 10_000
) -> Policy:
    """Minimise the sum of the sensitivities within the limit; see `allocation_front`.

    Raises:
        PolicyError: No policy is within the limit.
    """
    if costs.limit is None or costs.allows(Policy.dense(space.structure)):
        return Policy.dense(space.structure)
    return allocation_front(space, sensitivity, costs, [costs.limit], cells=cells)[0]


def allocation_front(
    space: Space,
    sensitivity: Sensitivity,
    costs: CostModel,
    limits: Sequence[float],
    *,
    fewer: Mapping[int, Sensitivity] | None = None,
    cells: int = 10_000,
) -> list[Policy]:
    """Minimise the sum of the sensitivities within each of several limits.

    Solves the multiple-choice knapsack problem (one width for each gene) on a grid of costs, once
    for all limits. No policy is above its limit; a better one may exist only if its cost differs
    by less than the rounding of the grid. If costs depend on the image tokens that are kept, the
    problem is solved for each number of them, and the solution with the least sum is taken.

    Args:
        space: The genes.
        sensitivity: By gene and width, the loss that the width adds; a gene takes only widths
            that it contains.
        costs: What policies cost; its own limit does not count.
        limits: The largest cost of each policy.
        fewer: By number of image tokens, the sensitivities of networks that read so many, where
            they differ; those of the image tokens themselves are in ``sensitivity``.
        cells: Cells of the grid, which spans what is left of the largest limit when all genes are
            at their narrowest; costs are rounded to whole cells.

    Returns:
        A policy for each limit.

    Raises:
        PolicyError: No policy is within a limit.
    """
    if costs.by_tokens:
        return _best_tokens(space, _problems(space, sensitivity, costs, fewer), limits, cells)
    widths = [sorted(sensitivity[gene.name]) for gene in space.genes]
    table = space.gene_costs(costs.costs)
    narrowest = space.policy([allowed[0] for allowed in widths])
    base = costs.cost(narrowest)
    cell = max(max(limits) - base, 0.0) / cells
    slack = len(widths) // 2 + 1  # the most cells by which rounding can err
    best = np.zeros(cells + slack + 1)  # smallest loss by the number of cells that may be spent
    spent, choices = [], []
    for gene, allowed in zip(space.genes, widths, strict=True):
        prices = [table[gene.name][width] - table[gene.name][allowed[0]] for width in allowed]
        spent.append([_cells(price, cell, len(best)) for price in prices])
        losses = np.full((len(allowed), len(best)), np.inf)
        for level, (width, taken) in enumerate(zip(allowed, spent[-1], strict=True)):
            if taken < len(best):
                losses[level, taken:] = sensitivity[gene.name][width] + best[: len(best) - taken]
        choices.append(losses.argmin(0))
        best = losses.min(0)

    def policy_within(limit: float) -> Policy:
        left = _cells(limit - base, cell, cells) + slack if cell else 0
        while True:
            levels = _read_back(choices, spent, left)
            kept = [allowed[level] for allowed, level in zip(widths, levels, strict=True)]
            policy = space.policy(kept)
            if replace(costs, limit=limit).allows(policy):
                return policy
            if left == 0:  # even then, widths are taken whose price is less than half a cell
                return feasible_policy(narrowest, costs, limit)
            left -= 1

    return [policy_within(limit) for limit in limits]


def _best_tokens(
    space: Space, problems: Sequence[_Problem], limits: Sequence[float], cells: int
) -> list[Policy]:
    """Solve for each number of image tokens, and take the best solution within each limit."""
    best: list[tuple[float, Policy] | None] = [None] * len(limits)
    for curves, additive in problems:
        narrowest = space.policy([min(curves[gene.name]) for gene in space.genes])
        within = [
            number
            for number, limit in enumerate(limits)
            if replace(additive, limit=limit).allows(narrowest)
        ]
        if not within:
            continue
        some = [limits[number] for number in within]
        policies = allocation_front(space, curves, additive, some, cells=cells)
        for number, policy in zip(within, policies, strict=True):
            total = sum(
                curves[gene.name][policy.widths[gene.components[0]]] for gene in space.genes
            )
            known = best[number]
            if known is None or total < known[0]:
                best[number] = total, policy
    if None in best:
        curves, additive = problems[-1]
        narrowest = space.policy([min(curves[gene.name]) for gene in space.genes])
        feasible_policy(narrowest, additive, limits[best.index(None)])
    return [found[1] for found in best if found is not None]


def allocation_range(
    space: Space,
    sensitivity: Sensitivity,
    costs: CostModel,
    count: int,
    *,
    fewer: Mapping[int, Sensitivity] | None = None,
) -> list[Policy]:
    """Minimise the sum of the sensitivities within limits from that of ``costs`` downwards.

    If costs depend on the image tokens that are kept, each number of them that can be within the
    limit gets its part of the policies, also where another number has a smaller sum: how the loss
    of tokens compares with that of widths is known less well than how widths compare.

    Args:
        space: The genes.
        sensitivity: As in `allocation_front`.
        costs: What policies cost, and the largest limit; None: that of the widest policy.
        count: The most policies.
        fewer: As in `allocation_front`.

    Returns:
        Distinct policies, the most expensive first, down to the narrowest one (if the fewest image
        tokens have more than one of them); more of them near the largest limit, where the choice
        is made. Nothing if no policy is within that limit.
    """
    problems = [
        (curves, additive, extent)
        for curves, additive in _problems(space, sensitivity, costs, fewer)
        if (extent := cost_range(space, curves, additive)) is not None
    ]
    if len(problems) > count:
        chosen = np.linspace(0, len(problems) - 1, count).round().astype(int).tolist()
        problems = [problems[number] for number in chosen]
    policies: list[Policy] = []
    for number, (curves, additive, (largest, narrowest)) in enumerate(problems):
        # Its part of the policies, and of what those before it have not used.
        most = -(-(count - len(policies)) // (len(problems) - number))
        steps = np.linspace(0, 1, _LIMITS_PER_POLICY * most) ** 2
        limits = (largest - (largest - narrowest) * steps).tolist()
        found = [*dict.fromkeys(allocation_front(space, curves, additive, limits))]
        if len(found) > most:
            last = number == len(problems) - 1  # only this one needs its narrowest policy
            places = np.linspace(0, len(found) - 1, most, endpoint=last)
            found = [found[round(place)] for place in places]
        policies += found
    return sorted(policies, key=costs.cost, reverse=True)


def _problems(
    space: Space,
    sensitivity: Sensitivity,
    costs: CostModel,
    fewer: Mapping[int, Sensitivity] | None,
) -> list[_Problem]:
    """Return the curves and costs for each number of image tokens, the largest number first."""
    if not costs.by_tokens:
        return [(sensitivity, costs)]
    index = space.structure.tokens
    tokens = next(gene.name for gene in space.genes if index in gene.components)
    return [
        ({**sensitivity, **(fewer or {}).get(width, {}), tokens: {width: loss}}, costs.at(width))
        for width, loss in sorted(sensitivity[tokens].items(), reverse=True)
    ]


def cost_range(
    space: Space, sensitivity: Sensitivity, costs: CostModel
) -> tuple[float, float] | None:
    """Return the largest limit that makes a difference, and the cost of the narrowest policy.

    Args:
        space: The genes.
        sensitivity: As in `allocation_front`.
        costs: What policies cost, and the largest limit; None: that of the widest policy.

    Returns:
        None if no policy is within the limit.
    """
    widest, narrowest = (
        costs.cost(space.policy([choose(sensitivity[gene.name]) for gene in space.genes]))
        for choose in (max, min)
    )
    if costs.tolerated is not None and narrowest > costs.tolerated:
        return None
    return widest if costs.limit is None else min(widest, costs.limit), narrowest


def _cells(price: float, cell: float, most: int) -> int:
    """Return the number of cells that a price takes, to the nearest one, at most ``most``."""
    if price <= 0:
        return 0
    return round(min(price / cell, most)) if cell else most


def _read_back(
    choices: Sequence[NDArray[np.intp]], spent: Sequence[Sequence[int]], left: int
) -> list[int]:
    """Return the level of each gene, from the last gene to the first."""
    levels = []
    for choice, taken in zip(reversed(choices), reversed(spent), strict=True):
        level = int(choice[left])
        left -= taken[level]
        levels.append(level)
    return levels[::-1]
