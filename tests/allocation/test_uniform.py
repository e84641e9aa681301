from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.allocation import uniform_by_kind, uniform_policies

if TYPE_CHECKING:
    from effllava_optuna.policy import ComponentId, ModelStructure


def widths(structure: ModelStructure) -> dict[ComponentId, tuple[int, ...]]:
    return {
        component.id: (1, 2, 4) if component.kind == "attn" else (8, 16, 24, 32)
        for component in structure.components
    }


def test_the_grid_has_every_pair_once(structure: ModelStructure) -> None:
    grid = uniform_by_kind(structure, widths(structure))
    pairs = {policy.widths[:2] for policy in grid}
    assert len(grid) == len(pairs) == 12
    for policy in grid:
        assert policy.widths == policy.widths[:2] * 3


def test_uniform_policies_range_from_the_narrowest_to_dense(structure: ModelStructure) -> None:
    selected = uniform_policies(structure, widths(structure))
    width_ratios = [policy.keep_ratio for policy in selected]
    assert width_ratios == sorted(width_ratios)
    assert width_ratios[-1] == 1
    assert [policy.widths[:2] for policy in selected] == [(1, 8), (2, 16), (2, 24), (4, 32)]
