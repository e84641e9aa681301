"""How many units each component keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.errors import PolicyError
from effllava_optuna.policy import ModelStructure, Policy


def another(structure: ModelStructure) -> ModelStructure:
    """Return a structure that differs in the parameters of one component."""
    *others, last = structure.components
    return ModelStructure((*others, replace(last, unit_params=last.unit_params + 1)))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        (
            (5, 8, 4, 8, 4, 8),
            "language.00.attn cannot keep 5 of 4 units. Use a number from 1 to 4.",
        ),
        ((4, 8, 4, 7, 4, 8), "language.01.mlp cannot keep 7 of 32 units. Use a number from 8 to"),
        ((4, 8, 0, 8, 4, 8), "language.01.attn cannot keep 0 of 4 units."),
        ((4, 8, 4, 8.5, 4, 8), "language.01.mlp cannot keep 8.5 units. Use a whole number"),
        ((True, 8, 4, 8, 4, 8), "language.00.attn cannot keep True units. Use a whole number"),
        (
            (4, 8, 4),
            "The policy has 3 widths for 6 components. Give one width for each component",
        ),
        (
            {"language.03.mlp": 1},
            "There is no component 'language.03.mlp'. The first component of this",
        ),
        ({"language.02.mlp": 33}, "language.02.mlp cannot keep 33 of 32 units."),
    ],
)
def test_of_names_the_place_the_value_and_the_cure(
    structure: ModelStructure, widths: Any, message: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.of(structure, widths)
    assert message in str(caught.value)
    assert caught.value.hint


def test_of_reads_sequences_arrays_and_mappings_alike(structure: ModelStructure) -> None:
    policy = Policy.of(structure, [4, 32, 2, 32, 4, 32])
    array: Any = np.array(policy.widths)
    assert Policy.of(structure, array) == policy
    assert Policy.of(structure, {"language.01.attn": 2}) == policy
    assert Policy.of(structure, {}) == Policy.dense(structure)
    assert all(type(count) is int for count in Policy.of(structure, array).widths)


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, float("nan")])
def test_uniform_refuses_ratios_outside_their_range(
    structure: ModelStructure, ratio: float
) -> None:
    with pytest.raises(
        PolicyError, match=rf"attn components cannot have a width ratio of {ratio}\. Use a"
    ):
        Policy.uniform(structure, ratio=ratio)


def test_uniform_refuses_a_missing_kind(structure: ModelStructure) -> None:
    with pytest.raises(PolicyError, match="mlp components cannot have a width ratio of None"):
        Policy.uniform(structure, ratio={"attn": 0.5})


@given(ratio=st.floats(0, 1, exclude_min=True))
def test_uniform_is_within_half_a_unit_of_the_ratio_or_at_the_floor(
    structure: ModelStructure, ratio: float
) -> None:
    policy = Policy.uniform(structure, ratio=ratio)
    for component, count in zip(structure.components, policy.widths, strict=True):
        assert count == component.floor or abs(count - ratio * component.width) <= 0.5
    assert policy == Policy.of(structure, policy.widths)


def test_uniform_accepts_a_ratio_for_each_kind(structure: ModelStructure) -> None:
    assert Policy.uniform(structure, ratio={"attn": 0.5, "mlp": 1}).widths == (2, 32, 2, 32, 2, 32)
    assert Policy.uniform(structure, ratio=1) == Policy.dense(structure)


def test_the_keep_ratio_weights_units_by_their_parameters(structure: ModelStructure) -> None:
    assert Policy.dense(structure).keep_ratio == 1
    policy = Policy.of(structure, {"language.00.attn": 1, "language.02.mlp": 12})
    removed = 3 * 100 + 20 * 10
    assert policy.keep_ratio == pytest.approx(1 - removed / (3 * 4 * 100 + 3 * 32 * 10))


def test_another_models_policy_is_refused(structure: ModelStructure) -> None:
    other = another(structure)
    policy = Policy.dense(other)
    message = (
        f"belongs to model structure {other.digest}, the model has {structure.digest}. Use the"
    )
    with pytest.raises(PolicyError, match=message):
        policy.check(structure)


def test_the_digest_changes_with_the_widths_and_with_the_structure(
    structure: ModelStructure,
) -> None:
    dense = Policy.dense(structure)
    digests = {
        dense.digest,
        Policy.of(structure, {"language.00.attn": 3}).digest,
        Policy.of(structure, {"language.01.attn": 3}).digest,
        Policy.dense(another(structure)).digest,
    }
    assert len(digests) == 4
    assert Policy.of(structure, dense.widths).digest == dense.digest
