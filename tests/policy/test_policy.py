"""How many units each site keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.errors import PolicyError
from effllava_optuna.policy import Anatomy, Policy


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            (5, 8, 4, 8, 4, 8),
            "language.00.attn cannot keep 5 of 4 units. Use a number from 1 to 4.",
        ),
        ((4, 8, 4, 7, 4, 8), "language.01.mlp cannot keep 7 of 32 units. Use a number from 8 to"),
        ((4, 8, 0, 8, 4, 8), "language.01.attn cannot keep 0 of 4 units."),
        ((4, 8, 4, 8.5, 4, 8), "language.01.mlp cannot keep 8.5 units. Use a whole number"),
        ((True, 8, 4, 8, 4, 8), "language.00.attn cannot keep True units. Use a whole number"),
        ((4, 8, 4), "The policy has 3 numbers for 6 sites. Give one number for each site"),
        ({"language.03.mlp": 1}, "There is no site 'language.03.mlp'. The first site of this"),
        ({"language.02.mlp": 33}, "language.02.mlp cannot keep 33 of 32 units."),
    ],
)
def test_of_names_the_place_the_value_and_the_cure(
    anatomy: Anatomy, keep: Any, message: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.of(anatomy, keep)
    assert message in str(caught.value)
    assert caught.value.hint


def test_of_reads_sequences_arrays_and_mappings_alike(anatomy: Anatomy) -> None:
    policy = Policy.of(anatomy, [4, 32, 2, 32, 4, 32])
    array: Any = np.array(policy.keep)
    assert Policy.of(anatomy, array) == policy
    assert Policy.of(anatomy, {"language.01.attn": 2}) == policy
    assert Policy.of(anatomy, {}) == Policy.dense(anatomy)
    assert all(type(count) is int for count in Policy.of(anatomy, array).keep)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_uniform_refuses_shares_outside_its_range(anatomy: Anatomy, share: float) -> None:
    with pytest.raises(PolicyError, match=rf"attn sites cannot keep a share of {share}\. Use a"):
        Policy.uniform(anatomy, keep=share)


def test_uniform_refuses_a_missing_kind(anatomy: Anatomy) -> None:
    with pytest.raises(PolicyError, match="mlp sites cannot keep a share of None"):
        Policy.uniform(anatomy, keep={"attn": 0.5})


@given(share=st.floats(0, 1, exclude_min=True))
def test_uniform_is_within_half_a_unit_of_the_share_or_at_the_floor(
    anatomy: Anatomy, share: float
) -> None:
    policy = Policy.uniform(anatomy, keep=share)
    for site, count in zip(anatomy.sites, policy.keep, strict=True):
        assert count == site.floor or abs(count - share * site.width) <= 0.5
    assert policy == Policy.of(anatomy, policy.keep)


def test_uniform_takes_a_share_for_each_kind(anatomy: Anatomy) -> None:
    assert Policy.uniform(anatomy, keep={"attn": 0.5, "mlp": 1}).keep == (2, 32, 2, 32, 2, 32)
    assert Policy.uniform(anatomy, keep=1) == Policy.dense(anatomy)


def test_kept_share_weighs_units_by_their_parameters(anatomy: Anatomy) -> None:
    assert Policy.dense(anatomy).kept_share(anatomy) == 1
    policy = Policy.of(anatomy, {"language.00.attn": 1, "language.02.mlp": 12})
    removed = 3 * 100 + 20 * 10
    assert policy.kept_share(anatomy) == pytest.approx(1 - removed / (3 * 4 * 100 + 3 * 32 * 10))


def test_another_models_policy_is_refused(anatomy: Anatomy) -> None:
    other = Anatomy((*anatomy.sites[:-1], replace(anatomy.sites[-1], unit_params=11)))
    policy = Policy.dense(other)
    message = f"belongs to anatomy {other.digest}, the model has {anatomy.digest}. Use the model"
    with pytest.raises(PolicyError, match=message):
        policy.kept_share(anatomy)


def test_the_digest_changes_with_the_counts_and_with_the_anatomy(anatomy: Anatomy) -> None:
    dense = Policy.dense(anatomy)
    digests = {
        dense.digest,
        Policy.of(anatomy, {"language.00.attn": 3}).digest,
        Policy.of(anatomy, {"language.01.attn": 3}).digest,
        replace(dense, anatomy="another").digest,
    }
    assert len(digests) == 4
    assert Policy.of(anatomy, dense.keep).digest == dense.digest
