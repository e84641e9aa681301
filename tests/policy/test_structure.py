"""Components and structures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from effllava_optuna.errors import PolicyError
from effllava_optuna.policy import Component, Kind, ModelStructure


def test_a_component_refuses_a_floor_outside_its_width() -> None:
    message = r"language\.07\.mlp has floor 9 and width 8\. Use a floor from 1 up to the width\."
    with pytest.raises(PolicyError, match=message):
        Component("language", 7, Kind.MLP, 8, 10, floor=9)
    with pytest.raises(PolicyError, match="floor 0"):
        Component("language", 7, Kind.MLP, 8, 10, floor=0)


def test_a_structure_refuses_no_components_and_the_same_component_twice() -> None:
    component = Component("language", 0, Kind.MLP, 8, 10)
    with pytest.raises(PolicyError, match=r"has no components\. Use a model"):
        ModelStructure(())
    with pytest.raises(
        PolicyError, match="Two components of the model structure have the same id"
    ):
        ModelStructure((component, component))


def test_the_digest_changes_with_every_field_of_a_component(structure: ModelStructure) -> None:
    first, *rest = structure.components
    changes: list[dict[str, Any]] = [
        {"tower": "vision"},
        {"layer": 9},
        {"kind": Kind.MLP, "layer": 9},
        {"width": 5},
        {"unit_params": 101},
        {"floor": 2},
    ]
    digests = {ModelStructure((replace(first, **change), *rest)).digest for change in changes}
    digests |= {
        structure.digest,
        ModelStructure((*rest, first)).digest,
        ModelStructure(tuple(rest)).digest,
    }
    assert len(digests) == len(changes) + 3


def test_json_keeps_the_structure(structure: ModelStructure) -> None:
    again = ModelStructure.from_json(structure.to_json())
    assert again == structure
    assert again.digest == structure.digest
    assert all(isinstance(component.kind, Kind) for component in again.components)
    assert again.kinds == (Kind.ATTN, Kind.MLP)
