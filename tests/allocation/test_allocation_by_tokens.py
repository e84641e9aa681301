"""Allocation where costs depend on the image tokens that are kept, against brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from effllava_optuna.allocation import WeightedProgramme, allocation_front, allocation_range
from effllava_optuna.errors import PolicyError
from effllava_optuna.policy import (
    IMAGE_TOKENS,
    Component,
    ComponentId,
    CostModel,
    Kind,
    ModelStructure,
    Policy,
    Space,
)

LAYERS = 3
STRUCTURE = ModelStructure(
    (IMAGE_TOKENS, *(Component("language", layer, Kind.MLP, 4, 10) for layer in range(LAYERS)))
)
WIDTHS = {
    component.id: (25, 50, 100) if component is IMAGE_TOKENS else (1, 2, 4)
    for component in STRUCTURE.components
}
SPACE = Space.of(STRUCTURE, WIDTHS)


def problem(seed: int) -> tuple[dict[str, dict[int, float]], CostModel]:
    """Draw curves and costs; with fewer tokens all widths cost less, but not in proportion."""
    rng = np.random.default_rng(seed)
    curves: dict[str, dict[int, float]] = {}
    whole: dict[ComponentId, dict[int, float]] = {}
    for component in STRUCTURE.components:
        losses = np.sort(rng.random(3))[::-1]
        losses[-1] = 0.0
        curves[component.id] = dict(zip(WIDTHS[component.id], losses.tolist(), strict=True))
        costs = np.sort(rng.random(3)) - 1
        costs -= costs[-1]
        whole[component.id] = dict(zip(WIDTHS[component.id], costs.tolist(), strict=True))
    by_tokens = {}
    for tokens, share in ((25, 0.4), (50, 0.6), (100, 1.0)):
        by_tokens[tokens] = {
            component: {
                width: 4 * (share - 1) if component == IMAGE_TOKENS.id else share * cost
                for width, cost in costs.items()
            }
            for component, costs in whole.items()
        }
    return curves, CostModel(by_tokens[100], None, by_tokens=by_tokens)


def all_policies() -> list[Policy]:
    return [Policy.of(STRUCTURE, widths) for widths in product(*WIDTHS.values())]


def loss_of(policy: Policy, curves: dict[str, dict[int, float]]) -> float:
    return sum(
        curves[component.id][width]
        for component, width in zip(STRUCTURE.components, policy.widths, strict=True)
    )


@pytest.mark.parametrize("seed", range(6))
def test_the_best_number_of_tokens_is_found_for_each_limit(seed: int) -> None:
    curves, costs = problem(seed)
    least = min(costs.cost(policy) for policy in all_policies())
    limits = np.linspace(0, least, 9).tolist()
    found = allocation_front(SPACE, curves, costs, limits)
    for limit, policy in zip(limits, found, strict=True):
        within = [p for p in all_policies() if costs.cost(p) <= limit + 1e-9]
        best = min(loss_of(p, curves) for p in within)
        assert costs.cost(policy) <= limit + 1e-9
        assert loss_of(policy, curves) == pytest.approx(best)


def test_a_limit_that_only_few_tokens_reach_is_met_by_them() -> None:
    curves, costs = problem(0)
    least = min(costs.cost(policy) for policy in all_policies())
    for limit in (least, least - 1e-12):  # sums are rounded
        (policy,) = allocation_front(SPACE, curves, costs, [limit])
        assert policy == SPACE.narrowest
    with pytest.raises(PolicyError, match="the limit is"):
        allocation_front(SPACE, curves, costs, [least - 0.1])


def by_tokens(policies: list[Policy]) -> dict[int, list[Policy]]:
    """Group policies by the width of their image tokens, their order kept."""
    groups: dict[int, list[Policy]] = {}
    for policy in policies:
        groups.setdefault(policy.widths[0], []).append(policy)
    return groups


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", [None, -2.5])
def test_a_range_unites_the_fronts_of_all_numbers_of_tokens(
    seed: int, limit: float | None
) -> None:
    curves, unlimited = problem(seed)
    costs = replace(unlimited, limit=limit)
    policies = allocation_range(SPACE, curves, costs, 12)
    spent = [costs.cost(policy) for policy in policies]
    assert spent == sorted(spent, reverse=True)
    assert len(set(policies)) == len(policies) <= 12
    found, feasible = by_tokens(policies), [p for p in all_policies() if costs.allows(p)]
    assert set(found) == {policy.widths[0] for policy in feasible}
    assert costs.cost(policies[-1]) == min(map(costs.cost, feasible))
    for tokens, front in found.items():
        same = [policy for policy in feasible if policy.widths[0] == tokens]
        assert loss_of(front[0], curves) == pytest.approx(min(loss_of(p, curves) for p in same))
        for policy in front:
            cheaper = [p for p in same if costs.cost(p) <= costs.cost(policy) + 1e-9]
            best = min(loss_of(p, curves) for p in cheaper)
            assert loss_of(policy, curves) == pytest.approx(best)


def fewer_curves(seed: int) -> dict[int, dict[str, dict[int, float]]]:
    """Draw curves of networks that read fewer tokens; those of the tokens do not count."""
    return {tokens: problem(10 * seed + tokens)[0] for tokens in (25, 50)}


@pytest.mark.parametrize("seed", range(6))
def test_each_number_of_tokens_has_curves_of_its_own(seed: int) -> None:
    curves, costs = problem(seed)
    fewer = fewer_curves(seed)
    least = min(costs.cost(policy) for policy in all_policies())
    own = {
        tokens: {**curves, **fewer.get(tokens, {}), IMAGE_TOKENS.id: curves[IMAGE_TOKENS.id]}
        for tokens in (25, 50, 100)
    }

    def best_of(policies: list[Policy]) -> float:
        return min(loss_of(policy, own[policy.widths[0]]) for policy in policies)

    limits = np.linspace(0, least, 9).tolist()
    found = allocation_front(SPACE, curves, costs, limits, fewer=fewer)
    for limit, policy in zip(limits, found, strict=True):
        within = [p for p in all_policies() if costs.cost(p) <= limit + 1e-9]
        assert best_of([policy]) == pytest.approx(best_of(within))
    for policy in allocation_range(SPACE, curves, costs, 12, fewer=fewer):
        cheaper = [
            p
            for p in all_policies()
            if p.widths[0] == policy.widths[0] and costs.cost(p) <= costs.cost(policy) + 1e-9
        ]
        assert best_of([policy]) == pytest.approx(best_of(cheaper))
    programme = WeightedProgramme.of(SPACE, curves, costs, fewer)
    assert programme is not None
    for position in (0.3, 0.7):
        limit = programme.largest + (programme.narrowest - programme.largest) * position**2
        (plain,) = allocation_front(SPACE, curves, costs, [limit], fewer=fewer)
        for shift in (0.0, 1.0):  # the same weight for all curves changes nothing
            params = programme.solve([shift] * len(programme.groups), position)
            solved = SPACE.decode(params).policy
            assert best_of([solved]) == pytest.approx(best_of([plain]))


def test_a_range_gives_each_number_of_tokens_the_same_part() -> None:
    curves, costs = problem(1)
    for count in range(3, 12):
        found = by_tokens(allocation_range(SPACE, curves, costs, count))
        parts = [len(found[tokens]) for tokens in (100, 50, 25)]
        assert sum(parts) == count
        assert parts[0] - parts[-1] <= 1
        assert parts == sorted(parts, reverse=True)
        if count < 8:  # where not all policies of the front fit, the cheapest ones are left out
            cheapest = {tokens: found[tokens][-1].widths[1:] for tokens in found}
            narrowest = SPACE.narrowest.widths[1:]
            assert narrowest not in (cheapest[100], cheapest[50])
            assert (cheapest[25] == narrowest) == (parts[-1] > 1)


@pytest.mark.parametrize(("count", "tokens"), [(1, {100}), (2, {100, 25})])
def test_a_range_of_few_policies_has_different_numbers_of_tokens(
    count: int, tokens: set[int]
) -> None:
    curves, costs = problem(1)
    assert set(by_tokens(allocation_range(SPACE, curves, costs, count))) == tokens


def test_a_range_of_fewer_policies_than_numbers_of_tokens_reaches_the_fewest() -> None:
    widths = {**WIDTHS, IMAGE_TOKENS.id: (25, 33, 50, 100)}
    curves, costs = problem(1)
    by_share = {share: dict(table) for share, table in costs.by_tokens.items()}
    by_share[33] = {
        component: {
            width: (cost + by_share[50][component][width]) / 2 for width, cost in row.items()
        }
        for component, row in by_share[25].items()
    }
    for table in by_share.values():
        table[IMAGE_TOKENS.id] = {33: table[IMAGE_TOKENS.id][25], **table[IMAGE_TOKENS.id]}
    tokens = curves[IMAGE_TOKENS.id]
    curves = {**curves, IMAGE_TOKENS.id: {**tokens, 33: (tokens[25] + tokens[50]) / 2}}
    costs = replace(costs, by_tokens=by_share)
    space = Space.of(STRUCTURE, widths)
    for count, expected in ((1, {100}), (2, {100, 25}), (3, {100, 33, 25})):
        policies = allocation_range(space, curves, costs, count)
        assert len(policies) == count
        assert set(by_tokens(policies)) == expected


def test_a_number_of_tokens_leaves_its_slots_to_the_others() -> None:
    curves, costs = problem(1)
    dense_tokens = [policy for policy in all_policies() if policy.widths[0] == 100]
    limit = min(costs.cost(policy) for policy in dense_tokens)
    found = by_tokens(allocation_range(SPACE, curves, replace(costs, limit=limit), 8))
    assert len(found[100]) == 1  # no other one is within the limit
    assert sum(map(len, found.values())) == 8


def test_a_programme_with_weights_reaches_the_fewest_tokens() -> None:
    curves, costs = problem(1)
    programme = WeightedProgramme.of(SPACE, curves, costs)
    assert programme is not None
    params = programme.solve([0.0] * len(programme.groups), 1.0)
    assert SPACE.decode(params).policy == SPACE.narrowest
