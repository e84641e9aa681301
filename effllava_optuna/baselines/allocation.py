"""Policies from what each site tells by itself: global ranks, damage curves.

All of them take allowed widths by site, ascending, and costs by site and width, which do not fall
with width and add up to what a policy costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from effllava_optuna.errors import PolicyError
from effllava_optuna.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

    from effllava_optuna.policy import Anatomy, SiteId

    Widths = Mapping[SiteId, Sequence[int]]
    Curves = Mapping[SiteId, Mapping[int, float]]

_SLACK = 1e-9  # rounding of a sum must not make a policy too expensive


def global_rank(
    anatomy: Anatomy,
    widths: Widths,
    scores: Mapping[SiteId, ArrayLike],
    costs: Curves,
    bound: float,
) -> Policy:
    """Let all units compete, each by its score within its site (FLAP, An et al. 2024).

    Scores are brought to mean 0 and deviation 1 within each site. Everything below a threshold
    goes; each site takes the widest allowed width that leaves no more than stay, its narrowest at
    least. The threshold is the lowest that is within the bound.

    Args:
        anatomy: The model's.
        widths: Allowed widths by site.
        scores: By site, one a unit, in any order; larger is more important.
        costs: By site and width.
        bound: The most that a policy may cost.

    Raises:
        PolicyError: Nothing is within the bound.
    """
    standard = {}
    for site in anatomy.sites:
        mine = np.asarray(scores[site.id], dtype=np.float64)
        standard[site.id] = np.sort((mine - mine.mean()) / (mine.std() or 1.0))[::-1]
    thresholds = np.unique(np.concatenate([*standard.values(), [np.inf]]))

    def at(threshold: float) -> list[int]:
        keep = []
        for site in anatomy.sites:
            left = int((standard[site.id] >= threshold).sum())
            keep.append(max([w for w in widths[site.id] if w <= left] or [widths[site.id][0]]))
        return keep

    low, high = 0, len(thresholds) - 1  # costs fall with the threshold
    while low < high:
        middle = (low + high) // 2
        if _cost(anatomy, costs, at(thresholds[middle])) <= bound + _SLACK:
            high = middle
        else:
            low = middle + 1
    return _within(anatomy, costs, at(thresholds[low]), bound)


def greedy(
    anatomy: Anatomy, widths: Widths, damage: Curves, costs: Curves, bound: float
) -> Policy:
    """Step down where a unit of cost does the least damage, until the bound is met.

    Args:
        anatomy: The model's.
        widths: Allowed widths by site.
        damage: By site and width: what narrowing this site alone does.
        costs: By site and width.
        bound: The most that a policy may cost.

    Raises:
        PolicyError: Nothing is within the bound.
    """
    ids = [site.id for site in anatomy.sites]
    at = [len(widths[site]) - 1 for site in ids]

    def keep() -> list[int]:
        return [widths[site][level] for site, level in zip(ids, at, strict=True)]

    while _cost(anatomy, costs, keep()) > bound + _SLACK and any(at):
        price = {}
        for index, site in enumerate(ids):
            for lower in range(at[index]):  # a curve may have steps that cost nothing
                wide, narrow = widths[site][at[index]], widths[site][lower]
                saved = costs[site][wide] - costs[site][narrow]
                harm = damage[site][narrow] - damage[site][wide]
                if saved > 0:
                    price[index, lower] = harm / saved
        if not price:
            break
        index, lower = min(price, key=lambda step: (price[step], -step[1]))
        at[index] = lower
    return _within(anatomy, costs, keep(), bound)


def additive(
    anatomy: Anatomy,
    widths: Widths,
    damage: Curves,
    costs: Curves,
    bound: float,
    *,
    cells: int = 10_000,
) -> Policy:
    """Minimise the sum of damages within the bound, by dynamic programming over sites.

    This is what tools with an integer programme do.

    Args:
        anatomy: The model's.
        widths: Allowed widths by site.
        damage: By site and width: what narrowing this site alone does.
        costs: By site and width.
        bound: The most that a policy may cost.
        cells: Parts of what is left when all sites are at their narrowest; costs are rounded up.

    Raises:
        PolicyError: Nothing is within the bound.
    """
    dense = [site.width for site in anatomy.sites]
    if _cost(anatomy, costs, dense) <= bound + _SLACK:
        return Policy.of(anatomy, dense)
    narrowest = [widths[site.id][0] for site in anatomy.sites]
    left = bound - _cost(anatomy, costs, narrowest)
    _within(anatomy, costs, narrowest, bound)
    best = np.zeros(cells + 1)  # by parts that may be spent
    choices = []
    for site in anatomy.sites:
        least = costs[site.id][widths[site.id][0]]
        totals = np.full((len(widths[site.id]), cells + 1), np.inf)
        for level, width in enumerate(widths[site.id]):
            share = (costs[site.id][width] - least) / left if left > 0 else np.inf
            more = 0 if level == 0 else int(np.ceil(min(share, 2.0) * cells - _SLACK))
            if more <= cells:
                totals[level, more:] = damage[site.id][width] + best[: cells + 1 - more]
        choices.append((totals.argmin(0), least))
        best = totals.min(0)
    spent, keep = cells, []
    for site, (levels, least) in zip(reversed(anatomy.sites), reversed(choices), strict=True):
        level = int(levels[spent])
        keep.append(widths[site.id][level])
        if level:
            share = (costs[site.id][keep[-1]] - least) / left
            spent -= int(np.ceil(min(share, 2.0) * cells - _SLACK))
    return _within(anatomy, costs, keep[::-1], bound)


def _cost(anatomy: Anatomy, costs: Curves, keep: Sequence[int]) -> float:
    return sum(costs[site.id][kept] for site, kept in zip(anatomy.sites, keep, strict=True))


def _within(anatomy: Anatomy, costs: Curves, keep: Sequence[int], bound: float) -> Policy:
    spent = _cost(anatomy, costs, keep)
    if spent > bound + _SLACK:
        raise PolicyError(
            f"A policy of these widths costs {spent:.4g} at least, the bound is {bound:.4g}.",
            hint="Allow more, or allow narrower widths.",
        )
    return Policy.of(anatomy, list(keep))
