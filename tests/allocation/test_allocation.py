from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest

from effllava_optuna.allocation import dynamic_programming, global_rank, greedy
from effllava_optuna.errors import PolicyError
from effllava_optuna.policy import CostModel, Policy

if TYPE_CHECKING:
    from effllava_optuna.policy import ComponentId, ModelStructure

    Curves = dict[ComponentId, dict[int, float]]


def widths(structure: ModelStructure) -> dict[ComponentId, tuple[int, ...]]:
    return {
        component.id: (1, 2, 4) if component.kind == "attn" else (8, 16, 32)
        for component in structure.components
    }


def costs(structure: ModelStructure) -> Curves:
    return {
        component.id: {
            w: component.unit_params * w / structure.parameters
            for w in widths(structure)[component.id]
        }
        for component in structure.components
    }


def sensitivity(structure: ModelStructure, seed: int) -> Curves:
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


def total(curves: Curves, structure: ModelStructure, policy: Policy) -> float:
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
        if total(prices, structure, policy) <= bound + 1e-9
    )
    arguments = (structure, widths(structure), curves, limited)
    optimal, near = dynamic_programming(*arguments), greedy(*arguments)
    for policy in (optimal, near):
        assert total(prices, structure, policy) <= bound + 1e-9
    assert total(curves, structure, optimal) == pytest.approx(least)
    assert least - 1e-9 <= total(curves, structure, near) <= least + 1


def test_nothing_is_cut_where_all_is_affordable(structure: ModelStructure) -> None:
    limited = CostModel(costs(structure), 1.0)
    arguments = (structure, widths(structure), sensitivity(structure, 0), limited)
    assert dynamic_programming(*arguments) == greedy(*arguments) == Policy.dense(structure)
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
    assert total(costs(structure), structure, policy) <= 0.6


def test_a_bound_that_nothing_meets_is_refused(structure: ModelStructure) -> None:
    curves, limited = sensitivity(structure, 0), CostModel(costs(structure), 0.1)
    scores = {component.id: np.zeros(component.width) for component in structure.components}
    arguments = (structure, widths(structure))
    with pytest.raises(PolicyError, match=r"the limit is 0\.1"):
        dynamic_programming(*arguments, curves, limited)
    with pytest.raises(PolicyError, match=r"the limit is 0\.1"):
        greedy(*arguments, curves, limited)
    with pytest.raises(PolicyError, match=r"the limit is 0\.1"):
        global_rank(*arguments, scores, limited)
