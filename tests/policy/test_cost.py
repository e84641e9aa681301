"""What policies cost, and the limit on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from effllava_optuna.policy import (
    Component,
    CostModel,
    Kind,
    ModelStructure,
    Policy,
    latency_costs,
    parameter_costs,
)

if TYPE_CHECKING:
    from effllava_optuna.policy import ComponentId


@pytest.fixture
def blocks() -> ModelStructure:
    """Return two blocks that can be removed, each with an MLP inside."""
    return ModelStructure(
        tuple(
            component
            for layer in range(2)
            for component in (
                Component("language", layer, Kind.MLP, 8, 10),
                Component("language", layer, Kind.BLOCK, 1, 20, floor=0),
            )
        )
    )


def allowed(structure: ModelStructure) -> dict[ComponentId, tuple[int, ...]]:
    return {
        component.id: (0, 1) if component.kind is Kind.BLOCK else (2, 4, 8, component.width)
        for component in structure.components
    }


def test_parameter_costs_add_up_to_the_keep_ratio(structure: ModelStructure) -> None:
    model = CostModel(parameter_costs(structure, allowed(structure)), 0.5)
    policy = Policy.of(structure, [2, 4, 2, 32, 4, 4])
    assert model.cost(policy) == pytest.approx(policy.keep_ratio)


def test_the_cost_of_a_removed_block_is_exact_at_the_narrowest_and_never_too_low(
    blocks: ModelStructure,
) -> None:
    model = CostModel(parameter_costs(blocks, allowed(blocks)), None)
    narrowest = Policy.of(blocks, [2, 0, 2, 1])
    wider = Policy.of(blocks, [8, 0, 2, 1])
    assert model.cost(narrowest) == pytest.approx(narrowest.keep_ratio)
    assert model.cost(wider) >= wider.keep_ratio
    saved = {c: {w: -1.0 * (max(ws) - w) for w in ws} for c, ws in allowed(blocks).items()}
    assert CostModel(latency_costs(blocks, saved), None).cost(Policy.dense(blocks)) == 0


def test_rounding_errors_do_not_make_a_policy_infeasible(structure: ModelStructure) -> None:
    costs = parameter_costs(structure, allowed(structure))
    policy = Policy.of(structure, [2, 4, 2, 32, 4, 4])
    exact = CostModel(costs, None).cost(policy)
    assert CostModel(costs, exact - 1e-12).allows(policy)
    beyond = CostModel(costs, exact - 1e-3, unit="of the weights", setting="search.keep_ratio")
    assert beyond.excess(policy) == pytest.approx(1e-3)
    message = "0.0010 of the weights above the limit (search.keep_ratio)"
    assert beyond.explain_excess(policy) == message
    assert beyond.tolerated == pytest.approx(exact - 1e-3)


def test_without_a_limit_every_policy_is_feasible(structure: ModelStructure) -> None:
    model = CostModel(parameter_costs(structure, allowed(structure)), None)
    assert model.allows(Policy.dense(structure))
    assert model.tolerated is None


def test_maximal_policies_are_feasible_and_contained_in_no_other(
    structure: ModelStructure,
) -> None:
    small = Policy.of(structure, [2, 4, 2, 8, 2, 4])
    wide_mlp = Policy.of(structure, [2, 32, 2, 8, 2, 4])
    wide_attention = Policy.of(structure, [4, 4, 2, 8, 2, 4])
    costs = {c.id: dict.fromkeys(range(c.width + 1), 0.0) for c in structure.components}
    free = CostModel(costs, 0.0)
    assert free.maximal([small, wide_mlp, wide_attention]) == [wide_mlp, wide_attention]
    half = CostModel(parameter_costs(structure, allowed(structure)), 0.5)
    assert half.maximal([Policy.dense(structure)]) == []
