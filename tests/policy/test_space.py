"""Which widths an epoch may use: promise 1."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.errors import PolicyError
from effllava_optuna.policy import Gene, ModelStructure, Policy, Space

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBERS = st.one_of(st.integers(-(10**9), 10**9), st.floats(allow_nan=True))


@st.composite
def spaces(draw: st.DrawFn, structure: ModelStructure) -> Space:
    """Draw a space of epoch 0."""
    widths = {
        component.id: sorted(
            draw(st.sets(st.integers(component.floor, component.width))) | {component.width}
        )
        for component in structure.components
    }
    return Space.of(structure, widths)


@pytest.fixture(scope="session")
def wide(structure: ModelStructure) -> Space:
    """Every width of every component."""
    return Space.of(structure, {s.id: range(s.floor, s.width + 1) for s in structure.components})


@given(data=st.data())
def test_decoding_any_parameters_gives_an_admissible_policy(
    structure: ModelStructure, data: st.DataObject
) -> None:
    space = data.draw(spaces(structure))
    params = {gene.name: data.draw(NUMBERS) for gene in space.genes}
    decoded = space.decode(params)
    assert Policy.of(structure, decoded.policy.widths) == decoded.policy
    for gene in space.genes:
        count = decoded.policy.widths[gene.components[0]]
        assert count in gene.widths
        # A parameter is either taken as it is, or moved and recorded.
        assert (gene.name in decoded.snapped) == (params[gene.name] not in gene.widths)
        if np.isfinite(params[gene.name]):
            assert all(
                abs(count - params[gene.name]) <= abs(width - params[gene.name])
                for width in gene.widths
            )


def test_halfway_snaps_to_the_smaller_width_and_beyond_the_ends_to_the_ends() -> None:
    gene = Gene("g", (0,), (2, 4, 8))
    nearest = [gene.nearest(count) for count in (-9, 2, 3, 4, 6, 6.5, 99, float("inf"))]
    assert nearest == [2, 2, 2, 4, 4, 8, 8, 8]


@given(data=st.data())
def test_decoding_what_was_encoded_gives_the_policy_back(
    structure: ModelStructure, wide: Space, data: st.DataObject
) -> None:
    kept_widths = [
        data.draw(st.integers(component.floor, component.width))
        for component in structure.components
    ]
    policy = Policy.of(structure, kept_widths)
    decoded = wide.decode(wide.encode(policy))
    assert decoded.policy == policy
    assert decoded.snapped == ()


def test_components_without_a_gene_stay_dense_and_tied_components_move_together(
    structure: ModelStructure,
) -> None:
    tied = Space(0, structure, (Gene("language.00.attn", (0, 2, 4), (1, 2, 4)),))
    assert tied.decode({"language.00.attn": 2}).policy.widths == (2, 32, 2, 32, 2, 32)


def test_a_missing_parameter_is_named(structure: ModelStructure, wide: Space) -> None:
    params = wide.encode(Policy.dense(structure))
    del params["language.01.mlp"]
    with pytest.raises(
        PolicyError, match=r"no parameter 'language\.01\.mlp'\. Suggest or enqueue"
    ):
        wide.decode(params)


def test_another_models_space_is_refused(structure: ModelStructure, wide: Space) -> None:
    other = ModelStructure(
        (*structure.components[:-1], replace(structure.components[-1], unit_params=11))
    )
    foreign = Policy.dense(other)
    misuses: list[Callable[[], object]] = [
        lambda: Space.from_json(wide.to_json(), other),
        lambda: wide.encode(foreign),
        lambda: wide.around([Policy.dense(structure), foreign], margin=1, first=wide),
        lambda: wide.around([], margin=1, first=replace(wide, structure=other)),
    ]
    message = (
        f"(space belongs to model structure {structure.digest}, not to {other.digest}|"
        f"policy belongs to model structure {other.digest}, the model has {structure.digest})"
        r"\. Use the model"
    )
    for misuse in misuses:
        with pytest.raises(PolicyError, match=message):
            misuse()


@pytest.mark.parametrize("widths", [(), (4, 16), (4, 32), (8, 33), (32, 8), (8, 8, 32)])
def test_widths_outside_a_component_or_without_the_dense_one_are_refused(
    structure: ModelStructure, widths: tuple[int, ...]
) -> None:
    allowed = {component.id: [component.width] for component in structure.components}
    allowed[structure.components[3].id] = [*widths]
    with pytest.raises(PolicyError, match=r"language\.01\.mlp.* Give "):
        Space.of(structure, allowed)


def test_a_component_without_widths_is_named(structure: ModelStructure) -> None:
    with pytest.raises(PolicyError, match=r"language\.00\.attn has allowed widths \(\)"):
        Space.of(structure, {})


@given(data=st.data(), margin=st.integers(0, 3))
def test_around_stays_inside_the_wide_space_with_elites_margin_and_dense_width(
    structure: ModelStructure, data: st.DataObject, margin: int
) -> None:
    wide = data.draw(spaces(structure))
    epoch_1 = wide
    for epoch in (1, 2):
        elites = [
            epoch_1.decode({g.name: data.draw(NUMBERS) for g in wide.genes}).policy
            for _ in range(data.draw(st.integers(1, 3)))
        ]
        epoch_1 = epoch_1.around(elites, margin=margin, first=wide)
        assert epoch_1.epoch == epoch
        assert epoch_1.structure == wide.structure
        for gene, whole in zip(epoch_1.genes, wide.genes, strict=True):
            levels = [whole.widths.index(elite.widths[gene.components[0]]) for elite in elites]
            low, high = min(levels) - margin, max(levels) + margin
            expected = {w for level, w in enumerate(whole.widths) if low <= level <= high}
            assert set(gene.widths) == expected | {whole.widths[-1]}
            assert gene.name == whole.name


def test_around_no_elites_leaves_the_widths_as_they_are(wide: Space) -> None:
    assert wide.around([], margin=1, first=wide) == replace(wide, epoch=1)


@given(data=st.data())
def test_json_keeps_the_space(structure: ModelStructure, data: st.DataObject) -> None:
    space = data.draw(spaces(structure))
    again = Space.from_json(json.loads(json.dumps(space.to_json())), structure)
    assert again == space
    assert again.digest == space.digest


def test_widths_from_an_array_are_plain_numbers(structure: ModelStructure) -> None:
    plain = Space.of(
        structure, {component.id: [component.width] for component in structure.components}
    )
    arrays: Any = {component.id: np.array([component.width]) for component in structure.components}
    assert Space.of(structure, arrays).digest == plain.digest


def test_the_digest_changes_with_epoch_structure_and_widths(
    structure: ModelStructure, wide: Space
) -> None:
    *others, last = structure.components
    other = ModelStructure((*others, replace(last, unit_params=11)))
    narrow = wide.around([Policy.dense(structure)], margin=0, first=wide)
    spaces = [wide, replace(wide, epoch=1), replace(wide, structure=other), narrow]
    assert len({space.digest for space in spaces}) == len(spaces)
