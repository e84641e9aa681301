"""Sensitivity curves from the losses of policies near one policy."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from effllava_optuna.allocation import (
    curve_policies,
    losses_by_widths,
    neighbouring_policies,
    residual_curves,
    sensitivity_curves,
)
from effllava_optuna.policy import Component, Kind, ModelStructure, Policy, Space

if TYPE_CHECKING:
    from effllava_optuna.policy import ComponentId


@pytest.fixture
def space(structure: ModelStructure) -> Space:
    return Space.of(
        structure,
        {
            component.id: (1, 2, 3, 4) if component.kind == "attn" else (8, 12, 16, 20, 24, 32)
            for component in structure.components
        },
    )


def loss(policy: Policy) -> float:
    """Compute a loss that falls with each width; narrow genes make each other worse."""
    ratios = [
        width / component.width
        for width, component in zip(policy.widths, policy.structure.components, strict=True)
    ]
    parts = [(1 - ratio) ** 2 * (index + 1) for index, ratio in enumerate(ratios)]
    return sum(parts) + 0.1 * sum(a * b for a, b in itertools.pairwise(parts))


def measured(policies: list[Policy]) -> dict[tuple[int, ...], float]:
    return losses_by_widths((policy, loss(policy)) for policy in policies)


def test_curve_policies_narrow_one_gene_at_a_time(space: Space) -> None:
    dense, *others = curve_policies(space, 2)
    assert dense == Policy.dense(space.structure)
    changed = [
        [(i, b) for i, (a, b) in enumerate(zip(dense.widths, other.widths, strict=True)) if a != b]
        for other in others
    ]
    assert [len(one) for one in changed] == [1] * (2 * len(space.genes))
    by_gene = [
        sorted(width for ((i, width),) in changed if i == g.components[0]) for g in space.genes
    ]
    for gene, widths in zip(space.genes, by_gene, strict=True):
        assert widths[0] == gene.widths[0]
        assert widths[1] < gene.widths[-1]


def test_all_widths_are_measured_if_there_are_few(space: Space) -> None:
    policies = curve_policies(space, 100)
    assert len(policies) == len(set(policies)) == 1 + sum(len(g.widths) - 1 for g in space.genes)
    curves = sensitivity_curves(space, policies[0], measured(policies))
    for gene in space.genes:
        for width in gene.widths:
            alone = space.with_width(policies[0], gene, width)
            assert curves[gene.name][width] == pytest.approx(loss(alone) - loss(policies[0]))


def test_curves_are_monotone_between_measured_widths(space: Space) -> None:
    policies = curve_policies(space, 2)
    losses = measured(policies)
    # One narrower policy is better by chance.
    losses[policies[1].widths] = losses[policies[2].widths] - 0.5
    curves = sensitivity_curves(space, policies[0], losses)
    for gene in space.genes:
        curve = [curves[gene.name][width] for width in gene.widths]
        assert len(curve) == len(gene.widths)
        assert curve == sorted(curve, reverse=True)
        assert curve[-1] == 0


def test_curves_in_context_are_those_of_the_other_narrowed_genes(space: Space) -> None:
    centre = space.policy([gene.widths[1] for gene in space.genes])
    policies = neighbouring_policies(space, centre, 1)
    assert policies[0] == centre
    assert len(policies) == 1 + 2 * len(space.genes)
    curves = sensitivity_curves(space, centre, measured(policies))
    for gene in space.genes:
        assert list(curves[gene.name]) == list(gene.widths[:3])
        for width in gene.widths[:3]:
            near = space.with_width(centre, gene, width)
            assert curves[gene.name][width] == pytest.approx(loss(near) - loss(centre))


def test_a_neighbourhood_ends_at_the_narrowest_and_the_dense_width(space: Space) -> None:
    dense = Policy.dense(space.structure)
    assert len(neighbouring_policies(space, dense, 2)) == 1 + 2 * len(space.genes)
    assert len(neighbouring_policies(space, space.narrowest, 100)) == len(
        curve_policies(space, 100)
    )


def test_a_curve_ends_where_nothing_was_measured(space: Space) -> None:
    """As if the trial with the narrowest width had failed."""
    policies = curve_policies(space, 100)
    losses = measured(policies)
    gene = space.genes[1]
    del losses[space.with_width(policies[0], gene, gene.widths[0]).widths]
    del losses[space.with_width(policies[0], gene, gene.widths[2]).widths]
    curve = sensitivity_curves(space, policies[0], losses)[gene.name]
    assert list(curve) == list(gene.widths[1:])
    assert curve[gene.widths[1]] > curve[gene.widths[2]] > curve[gene.widths[3]]
    unmeasured = sensitivity_curves(space, policies[0], {policies[0].widths: 1.0})
    assert unmeasured[gene.name] == {gene.widths[-1]: 0.0}


def test_tied_components_are_narrowed_together(structure: ModelStructure) -> None:
    widths = {
        component.id: (1, 4) if component.kind == "attn" else (8, 32)
        for component in structure.components
    }
    space = Space.of(structure, widths, tied=True)
    assert len(curve_policies(space, 3)) == 1 + len(space.genes) < 1 + len(structure.components)
    curves = sensitivity_curves(space, Policy.dense(structure), measured(curve_policies(space, 3)))
    assert set(curves) == {gene.name for gene in space.genes}


def test_residual_curves_are_sums_over_the_components_of_a_gene() -> None:
    structure = ModelStructure(
        tuple(
            component
            for layer in range(2)
            for component in (
                Component("language", layer, Kind.ATTN, 4, 100),
                Component("language", layer, Kind.BLOCK, 1, 10, floor=0),
            )
        )
    )
    widths: dict[ComponentId, tuple[int, ...]] = {
        component.id: (0, 1) if component.kind is Kind.BLOCK else (2, 4)
        for component in structure.components
    }
    attention, _, other, block = (component.id for component in structure.components)
    residuals = {
        attention: {2: 3.0, 4: 0.0},
        other: {2: 5.0, 4: 0.0},
        block: {0: 7.0, 1: 0.0},  # the other block has no estimate
    }
    apart = residual_curves(Space.of(structure, widths), residuals)
    assert apart == {
        "language.00.attn": {2: 3.0, 4: 0.0},
        "language.00.block": {1: 0.0},
        "language.01.attn": {2: 5.0, 4: 0.0},
        "language.01.block": {0: 7.0, 1: 0.0},
    }
    tied = residual_curves(Space.of(structure, widths, tied=True), residuals)
    assert tied["language.00.attn"] == {2: 8.0, 4: 0.0}
