from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest

from effllava_optuna.baselines import additive, global_rank, greedy
from effllava_optuna.errors import PolicyError
from effllava_optuna.policy import Policy

if TYPE_CHECKING:
    from effllava_optuna.policy import Anatomy, SiteId

    Curves = dict[SiteId, dict[int, float]]


def widths(anatomy: Anatomy) -> dict[SiteId, tuple[int, ...]]:
    return {site.id: (1, 2, 4) if site.kind == "attn" else (8, 16, 32) for site in anatomy.sites}


def costs(anatomy: Anatomy) -> Curves:
    return {
        site.id: {w: site.unit_params * w / anatomy.parameters for w in widths(anatomy)[site.id]}
        for site in anatomy.sites
    }


def damage(anatomy: Anatomy, seed: int) -> Curves:
    """Random curves that fall with width, 0 at the dense one."""
    rng = np.random.default_rng(seed)
    return {
        site.id: dict(
            zip(
                widths(anatomy)[site.id],
                [*sorted(rng.random(2).tolist(), reverse=True), 0.0],
                strict=True,
            )
        )
        for site in anatomy.sites
    }


def total(curves: Curves, anatomy: Anatomy, policy: Policy) -> float:
    return sum(curves[s.id][k] for s, k in zip(anatomy.sites, policy.keep, strict=True))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bound", [0.4, 0.55, 0.8])
def test_the_programme_finds_the_least_sum_and_greed_comes_near(
    anatomy: Anatomy, seed: int, bound: float
) -> None:
    curves, prices = damage(anatomy, seed), costs(anatomy)
    every = [
        Policy.of(anatomy, keep)
        for keep in product(*(widths(anatomy)[site.id] for site in anatomy.sites))
    ]
    least = min(
        total(curves, anatomy, policy)
        for policy in every
        if total(prices, anatomy, policy) <= bound + 1e-9
    )
    told = (anatomy, widths(anatomy), curves, prices, bound)
    found, near = additive(*told), greedy(*told)
    for policy in (found, near):
        assert total(prices, anatomy, policy) <= bound + 1e-9
    assert total(curves, anatomy, found) == pytest.approx(least)
    assert least - 1e-9 <= total(curves, anatomy, near) <= least + 1


def test_nothing_is_cut_where_all_is_affordable(anatomy: Anatomy) -> None:
    told = (anatomy, widths(anatomy), damage(anatomy, 0), costs(anatomy), 1.0)
    assert additive(*told) == greedy(*told) == Policy.dense(anatomy)
    scores = {site.id: np.arange(site.width) for site in anatomy.sites}
    ranked = global_rank(anatomy, widths(anatomy), scores, costs(anatomy), 1.0)
    assert ranked == Policy.dense(anatomy)


def test_units_compete_within_the_bound(anatomy: Anatomy) -> None:
    scores = {site.id: np.zeros(site.width) for site in anatomy.sites}
    # One unit of the first MLP stands out, all of the second one are alike but for the last.
    first, second = (site for site in anatomy.sites if site.kind == "mlp" and site.layer < 2)
    scores[first.id] = np.array([100.0] + [0.0] * 31)
    scores[second.id] = np.array([0.0] + [1.0] * 31)
    found = global_rank(anatomy, widths(anatomy), scores, costs(anatomy), 0.6)
    kept = dict(zip([site.id for site in anatomy.sites], found.keep, strict=True))
    assert kept[first.id] == 8
    assert kept[second.id] == 16  # 31 stay, which no allowed width is
    assert total(costs(anatomy), anatomy, found) <= 0.6


def test_a_bound_that_nothing_meets_is_refused(anatomy: Anatomy) -> None:
    curves, prices = damage(anatomy, 0), costs(anatomy)
    scores = {site.id: np.zeros(site.width) for site in anatomy.sites}
    told = (anatomy, widths(anatomy))
    with pytest.raises(PolicyError, match=r"the bound is 0\.1"):
        additive(*told, curves, prices, 0.1)
    with pytest.raises(PolicyError, match=r"the bound is 0\.1"):
        greedy(*told, curves, prices, 0.1)
    with pytest.raises(PolicyError, match=r"the bound is 0\.1"):
        global_rank(*told, scores, prices, 0.1)
