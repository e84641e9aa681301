from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest

from effllava_optuna.allocation import (
    allocation_front,
    allocation_range,
    dynamic_programming,
    global_rank,
    greedy,
)
from effllava_optuna.errors import PolicyError
from effllava_optuna.policy import CostModel, Policy, Space

if TYPE_CHECKING:
    from collections.abc import Mapping

    from effllava_optuna.policy import ComponentId, Costs, ModelStructure


def widths(structure: ModelStructure) -> dict[ComponentId, tuple[int, ...]]:
    return {
        component.id: (1, 2, 4) if component.kind == "attn" else (8, 16, 32)
        for component in structure.components
    }


def costs(structure: ModelStructure) -> Costs:
    return {
        component.id: {
            w: component.unit_params * w / structure.parameters
            for w in widths(structure)[component.id]
        }
        for component in structure.components
    }


def sensitivity(structure: ModelStructure, seed: int) -> dict[str, dict[int, float]]:
    """Random curves that fall with width, 0 at the dense one."""
    rng = np.random.default_rng(seed)
    return {
        component.id: dict(
            zip(
                widths(structure)[component.id],
                [*sorted(rng.random(2).tolist(), reverse=True), 0.0],
                strict=True,
            )
        )
        for component in structure.components
    }


def total(
    curves: Mapping[str, Mapping[int, float]], structure: ModelStructure, policy: Policy
) -> float:
    return sum(curves[s.id][k] for s, k in zip(structure.components, policy.widths, strict=True))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bound", [0.4, 0.55, 0.8])
def test_the_programme_finds_the_least_sum_and_greed_comes_near(
    structure: ModelStructure, seed: int, bound: float
) -> None:
    curves, prices = sensitivity(structure, seed), costs(structure)
    limited = CostModel(prices, bound)
    every = [
        Policy.of(structure, kept_widths)
        for kept_widths in product(
            *(widths(structure)[component.id] for component in structure.components)
        )
    ]
    least = min(
        total(curves, structure, policy)
        for policy in every
        if CostModel(prices, None).cost(policy) <= bound + 1e-9
    )
    space = Space.of(structure, widths(structure))
    optimal = dynamic_programming(space, curves, limited)
    near = greedy(space, curves, limited)
    for policy in (optimal, near):
        assert CostModel(prices, None).cost(policy) <= bound + 1e-9
    assert total(curves, structure, optimal) == pytest.approx(least)
    assert least - 1e-9 <= total(curves, structure, near) <= least + 1


@pytest.mark.parametrize("seed", range(3))
def test_one_programme_solves_all_limits(structure: ModelStructure, seed: int) -> None:
    """As exactly as a programme for each: compared with all policies, tied components included."""
    space = Space.of(structure, widths(structure), tied=True)
    curves, prices = sensitivity(structure, seed), costs(structure)
    curves = {gene.name: curves[gene.name] for gene in space.genes}
    limits = [1.0, 0.8, 0.5, 0.3]
    every = [space.policy(kept) for kept in product(*(gene.widths for gene in space.genes))]

    def loss(policy: Policy) -> float:
        return float(sum(curves[g.name][policy.widths[g.components[0]]] for g in space.genes))

    found = allocation_front(space, curves, CostModel(prices, None), limits)
    for policy, limit in zip(found, limits, strict=True):
        within = [one for one in every if CostModel(prices, None).cost(one) <= limit + 1e-9]
        assert policy in within
        assert loss(policy) == pytest.approx(min(map(loss, within)))


@pytest.mark.parametrize("limit", [None, 0.6])
def test_a_range_of_policies_reaches_from_the_limit_to_the_narrowest(
    structure: ModelStructure, limit: float | None
) -> None:
    space, curves = Space.of(structure, widths(structure)), sensitivity(structure, 1)
    limited = CostModel(costs(structure), limit)
    found = allocation_range(space, curves, limited, 12)
    spent = [limited.cost(policy) for policy in found]
    assert len(set(found)) == len(found) == 12
    assert spent == sorted(spent, reverse=True)
    assert found[0] == dynamic_programming(space, curves, limited)
    assert found[-1] == space.narrowest
    assert all(map(limited.allows, found))


def test_the_narrowest_limit_is_met_where_two_widths_cost_nearly_the_same(
    structure: ModelStructure,
) -> None:
    space, curves = Space.of(structure, widths(structure)), sensitivity(structure, 1)
    prices = {component: dict(by_width) for component, by_width in costs(structure).items()}
    first = structure.components[0].id
    narrow, wider, _ = widths(structure)[first]
    prices[first][wider] = prices[first][narrow] + 1e-7  # less than a cell of the grid
    found = allocation_range(space, curves, CostModel(prices, None), 12)
    assert found[-1] == space.narrowest


def test_a_range_has_no_policies_where_nothing_meets_the_limit(structure: ModelStructure) -> None:
    space, curves = Space.of(structure, widths(structure)), sensitivity(structure, 1)
    prices = costs(structure)
    least = CostModel(prices, None).cost(space.narrowest)
    assert allocation_range(space, curves, CostModel(prices, 0.99 * least), 4) == []
    assert allocation_range(space, curves, CostModel(prices, least), 4) == [space.narrowest]
    fixed = {gene.name: {gene.widths[-1]: 0.0} for gene in space.genes}
    assert allocation_range(space, fixed, CostModel(prices, 0.9), 4) == []


def test_nothing_is_cut_where_all_is_affordable(structure: ModelStructure) -> None:
    limited = CostModel(costs(structure), 1.0)
    space, curves = Space.of(structure, widths(structure)), sensitivity(structure, 0)
    assert dynamic_programming(space, curves, limited) == Policy.dense(structure)
    assert greedy(space, curves, limited) == Policy.dense(structure)
    scores = {component.id: np.arange(component.width) for component in structure.components}
    ranked = global_rank(structure, widths(structure), scores, limited)
    assert ranked == Policy.dense(structure)


def test_units_compete_within_the_bound(structure: ModelStructure) -> None:
    scores = {component.id: np.zeros(component.width) for component in structure.components}
    # One unit of the first MLP stands out, all of the second one are alike but for the last.
    first, second = (
        component
        for component in structure.components
        if component.kind == "mlp" and component.layer < 2
    )
    scores[first.id] = np.array([100.0] + [0.0] * 31)
    scores[second.id] = np.array([0.0] + [1.0] * 31)
    policy = global_rank(structure, widths(structure), scores, CostModel(costs(structure), 0.6))
    kept = dict(
        zip([component.id for component in structure.components], policy.widths, strict=True)
    )
    assert kept[first.id] == 8
    assert kept[second.id] == 16  # 31 stay, which no allowed width is
    assert CostModel(costs(structure), None).cost(policy) <= 0.6


def test_a_bound_that_nothing_meets_is_refused(structure: ModelStructure) -> None:
    curves, limited = sensitivity(structure, 0), CostModel(costs(structure), 0.1)
    scores = {component.id: np.zeros(component.width) for component in structure.components}
    space = Space.of(structure, widths(structure))
    with pytest.raises(PolicyError, match=r"the limit is 0\.1"):
        dynamic_programming(space, curves, limited)
    with pytest.raises(PolicyError, match=r"the limit is 0\.1"):
        greedy(space, curves, limited)
    with pytest.raises(PolicyError, match=r"the limit is 0\.1"):
        global_rank(structure, widths(structure), scores, limited)
