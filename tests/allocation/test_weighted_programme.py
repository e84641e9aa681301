"""Dynamic programming over weighted curves."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from effllava_optuna.allocation import WeightedProgramme, allocation_range, dynamic_programming
from effllava_optuna.policy import Component, CostModel, Gene, Kind, ModelStructure, Space

WIDTHS = (1, 2, 4, 8)


def space_of(layers: int) -> Space:
    structure = ModelStructure(
        tuple(
            Component("language", layer, kind, 8, 100 + layer)
            for layer in range(layers)
            for kind in (Kind.ATTN, Kind.MLP)
        )
    )
    return Space.of(structure, {component.id: WIDTHS for component in structure.components})


def costs_of(space: Space, limit: float | None) -> CostModel:
    return CostModel(
        {
            component.id: {width: component.unit_params * width * 1e-4 for width in WIDTHS}
            for component in space.structure.components
        },
        limit,
    )


def curves_of(space: Space) -> dict[str, dict[int, float]]:
    rng = np.random.default_rng(5)
    losses = [[*sorted(rng.random(3).tolist(), reverse=True), 0.0] for _ in space.genes]
    return {
        gene.name: dict(zip(WIDTHS, row, strict=True))
        for gene, row in zip(space.genes, losses, strict=True)
    }


@pytest.fixture
def programme() -> WeightedProgramme:
    space = space_of(3)
    programme = WeightedProgramme.of(space, curves_of(space), costs_of(space, 0.3))
    assert programme is not None
    return programme


def test_equal_weights_are_plain_dynamic_programming(programme: WeightedProgramme) -> None:
    space, curves, costs = programme.space, programme.sensitivity, programme.costs
    plain = [0.0] * len(programme.groups)
    assert programme.solve(plain, 0.0) == space.encode(dynamic_programming(space, curves, costs))
    assert programme.solve(plain, 1.0) == space.encode(space.narrowest)
    assert programme.solve([0.7] * len(plain), 0.3) == programme.solve(plain, 0.3)
    front = {tuple(programme.solve(plain, p).values()) for p in np.linspace(0, 1, 20).tolist()}
    expected = allocation_range(space, curves, costs, 5)
    assert {tuple(space.encode(policy).values()) for policy in expected} <= front


def test_weighted_sums_are_the_least_within_every_limit(programme: WeightedProgramme) -> None:
    """Compared with all policies."""
    rng = np.random.default_rng(1)
    space, costs = programme.space, programme.costs
    every = [space.policy(widths) for widths in product(WIDTHS, repeat=len(space.genes))]
    prices = [costs.cost(policy) for policy in every]
    for _ in range(5):
        coefficients = rng.uniform(-2, 2, len(programme.groups)).tolist()
        position = float(rng.random())
        weights = {
            names[0]: np.exp(one)
            for names, one in zip(programme.groups, coefficients, strict=True)
        }

        def loss(params: dict[str, int], weights: dict[str, float] = weights) -> float:
            return sum(
                weights[name] * programme.sensitivity[name][params[name]] for name in params
            )

        params = programme.solve(coefficients, position)
        cost = costs.cost(space.decode(params).policy)
        limit = programme.largest - (programme.largest - programme.narrowest) * position**2
        assert cost <= limit + 1e-9
        least = min(
            loss(space.encode(policy))
            for policy, price in zip(every, prices, strict=True)
            if price <= cost + 1e-12
        )
        assert loss(params) == pytest.approx(least)


def test_a_heavier_group_keeps_more(programme: WeightedProgramme) -> None:
    first = programme.groups[0][0]
    widths = [
        programme.solve([one] + [0.0] * (len(programme.groups) - 1), 0.4)[first]
        for one in (-2.3, 0.0, 2.3)
    ]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_the_position_of_a_policy_is_that_of_its_cost(programme: WeightedProgramme) -> None:
    plain = [0.0] * len(programme.groups)
    for position in (0.0, 0.3, 0.6, 1.0):
        params = programme.solve(plain, position)
        assert programme.position(params) >= position - 1e-9
        assert programme.solve(plain, programme.position(params) - 1e-9) == params
    dense = {gene.name: gene.widths[-1] for gene in programme.space.genes}
    assert programme.position(dense) == 0.0


@pytest.mark.parametrize(("layers", "sizes"), [(1, {1}), (6, {1}), (32, {5, 6}), (40, {6, 7})])
def test_groups_are_neighbours_of_one_kind(layers: int, sizes: set[int]) -> None:
    space = space_of(layers)
    programme = WeightedProgramme.of(space, curves_of(space), costs_of(space, None))
    assert programme is not None
    groups = programme.groups
    assert len(groups) == min(12, 2 * layers)
    assert {len(names) for names in groups} == sizes
    in_order = [gene.name for kind in ("attn", "mlp") for gene in space.genes if kind in gene.name]
    assert [name for names in groups for name in names] == in_order
    for names in groups:
        assert len({name.rpartition(".")[2] for name in names}) == 1


def test_genes_without_a_second_width_are_in_no_group() -> None:
    space = space_of(2)
    curves = {**curves_of(space), space.genes[0].name: {8: 0.0}}
    programme = WeightedProgramme.of(space, curves, costs_of(space, None))
    assert programme is not None
    assert {name for names in programme.groups for name in names} == {
        gene.name for gene in space.genes[1:]
    }
    assert programme.solve([1.0, -1.0, 0.5], 1.0)[space.genes[0].name] == 8


def test_nothing_to_weigh_and_an_unreachable_limit_have_no_programme() -> None:
    space = space_of(2)
    dense = {gene.name: {8: 0.0} for gene in space.genes}
    assert WeightedProgramme.of(space, dense, costs_of(space, None)) is None
    assert WeightedProgramme.of(space, curves_of(space), costs_of(space, 0.01)) is None
    fixed = replace(space, genes=tuple(Gene(g.name, g.components, (8,)) for g in space.genes))
    assert WeightedProgramme.of(fixed, dense, costs_of(space, None)) is None
