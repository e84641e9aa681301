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
from effllava_optuna.policy import Anatomy, Gene, Policy, Space

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBERS = st.one_of(st.integers(-(10**9), 10**9), st.floats(allow_nan=True))


@st.composite
def spaces(draw: st.DrawFn, anatomy: Anatomy) -> Space:
    """Draw a space of epoch 0."""
    widths = {
        site.id: sorted(draw(st.sets(st.integers(site.floor, site.width))) | {site.width})
        for site in anatomy.sites
    }
    return Space.of(anatomy, widths)


@pytest.fixture(scope="session")
def wide(anatomy: Anatomy) -> Space:
    """Every width of every site."""
    return Space.of(anatomy, {s.id: range(s.floor, s.width + 1) for s in anatomy.sites})


@given(data=st.data())
def test_decoding_any_parameters_gives_an_admissible_policy(
    anatomy: Anatomy, data: st.DataObject
) -> None:
    space = data.draw(spaces(anatomy))
    params = {gene.name: data.draw(NUMBERS) for gene in space.genes}
    decoded = space.decode(params, anatomy)
    assert Policy.of(anatomy, decoded.policy.keep) == decoded.policy
    for gene in space.genes:
        count = decoded.policy.keep[gene.sites[0]]
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
    found = [gene.nearest(count) for count in (-9, 2, 3, 4, 6, 6.5, 99, float("inf"))]
    assert found == [2, 2, 2, 4, 4, 8, 8, 8]


@given(data=st.data())
def test_decoding_what_was_encoded_gives_the_policy_back(
    anatomy: Anatomy, wide: Space, data: st.DataObject
) -> None:
    keep = [data.draw(st.integers(site.floor, site.width)) for site in anatomy.sites]
    policy = Policy.of(anatomy, keep)
    decoded = wide.decode(wide.encode(policy), anatomy)
    assert decoded.policy == policy
    assert decoded.snapped == ()


def test_sites_without_a_gene_stay_dense_and_tied_sites_move_together(anatomy: Anatomy) -> None:
    tied = Space(0, anatomy.digest, (Gene("language.00.attn", (0, 2, 4), (1, 2, 4)),))
    assert tied.decode({"language.00.attn": 2}, anatomy).policy.keep == (2, 32, 2, 32, 2, 32)


def test_a_missing_parameter_is_named(anatomy: Anatomy, wide: Space) -> None:
    params = wide.encode(Policy.dense(anatomy))
    del params["language.01.mlp"]
    with pytest.raises(
        PolicyError, match=r"no parameter 'language\.01\.mlp'\. Suggest or enqueue"
    ):
        wide.decode(params, anatomy)


def test_another_models_space_is_refused(anatomy: Anatomy, wide: Space) -> None:
    other = Anatomy((*anatomy.sites[:-1], replace(anatomy.sites[-1], unit_params=11)))
    foreign = Policy.dense(other)
    misuses: list[Callable[[], object]] = [
        lambda: wide.decode(wide.encode(Policy.dense(anatomy)), other),
        lambda: wide.encode(foreign),
        lambda: wide.around([Policy.dense(anatomy), foreign], margin=1, wide=wide),
        lambda: wide.around([], margin=1, wide=replace(wide, anatomy=other.digest)),
    ]
    message = f"space belongs to anatomy {anatomy.digest}, not to {other.digest}. Use the model"
    for misuse in misuses:
        with pytest.raises(PolicyError, match=message):
            misuse()


@pytest.mark.parametrize("widths", [(), (4, 16), (4, 32), (8, 33), (32, 8), (8, 8, 32)])
def test_widths_outside_a_site_or_without_the_dense_one_are_refused(
    anatomy: Anatomy, widths: tuple[int, ...]
) -> None:
    allowed = {site.id: [site.width] for site in anatomy.sites}
    allowed[anatomy.sites[3].id] = [*widths]
    with pytest.raises(PolicyError, match=r"language\.01\.mlp.* Give "):
        Space.of(anatomy, allowed)


def test_a_site_without_widths_is_named(anatomy: Anatomy) -> None:
    with pytest.raises(PolicyError, match=r"language\.00\.attn has allowed widths \(\)"):
        Space.of(anatomy, {})


@given(data=st.data(), margin=st.integers(0, 3))
def test_around_stays_inside_the_wide_space_with_elites_margin_and_dense_width(
    anatomy: Anatomy, data: st.DataObject, margin: int
) -> None:
    wide = data.draw(spaces(anatomy))
    epoch_1 = wide
    for epoch in (1, 2):
        elites = [
            epoch_1.decode({g.name: data.draw(NUMBERS) for g in wide.genes}, anatomy).policy
            for _ in range(data.draw(st.integers(1, 3)))
        ]
        epoch_1 = epoch_1.around(elites, margin=margin, wide=wide)
        assert epoch_1.epoch == epoch
        assert epoch_1.anatomy == wide.anatomy
        for gene, whole in zip(epoch_1.genes, wide.genes, strict=True):
            levels = [whole.widths.index(elite.keep[gene.sites[0]]) for elite in elites]
            low, high = min(levels) - margin, max(levels) + margin
            expected = {w for level, w in enumerate(whole.widths) if low <= level <= high}
            assert set(gene.widths) == expected | {whole.widths[-1]}
            assert gene.name == whole.name


def test_around_no_elites_leaves_the_widths_as_they_are(wide: Space) -> None:
    assert wide.around([], margin=1, wide=wide) == replace(wide, epoch=1)


@given(data=st.data())
def test_json_keeps_the_space(anatomy: Anatomy, data: st.DataObject) -> None:
    space = data.draw(spaces(anatomy))
    again = Space.from_json(json.loads(json.dumps(space.to_json())))
    assert again == space
    assert again.digest == space.digest


def test_widths_from_an_array_are_plain_numbers(anatomy: Anatomy) -> None:
    plain = Space.of(anatomy, {site.id: [site.width] for site in anatomy.sites})
    arrays: Any = {site.id: np.array([site.width]) for site in anatomy.sites}
    assert Space.of(anatomy, arrays).digest == plain.digest


def test_the_digest_changes_with_epoch_anatomy_and_widths(anatomy: Anatomy, wide: Space) -> None:
    narrow = wide.around([Policy.dense(anatomy)], margin=0, wide=wide)
    spaces = [wide, replace(wide, epoch=1), replace(wide, anatomy="another"), narrow]
    assert len({space.digest for space in spaces}) == len(spaces)
