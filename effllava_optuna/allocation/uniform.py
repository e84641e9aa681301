"""Uniform policies: one width ratio for all components, or one for each kind."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from effllava_optuna.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import ComponentId, ModelStructure

    Widths = Mapping[ComponentId, Sequence[int]]


def uniform_by_kind(structure: ModelStructure, widths: Widths) -> tuple[Policy, ...]:
    """Return the whole grid of policies with one level of width for each kind of component.

    Args:
        structure: The structure of the model. Components of one kind may differ in width; the
            level is the position among the allowed widths.
        widths: Allowed widths by component, ascending.
    """
    components = structure.components
    levels_by_kind = {
        kind: range(min(len(widths[c.id]) for c in components if c.kind is kind))
        for kind in structure.kinds
    }
    policies = []
    for levels in product(*levels_by_kind.values()):
        level = dict(zip(levels_by_kind, levels, strict=True))
        policies.append(
            Policy.of(
                structure,
                [widths[c.id][level[c.kind]] if c.kind in level else c.width for c in components],
            )
        )
    return tuple(policies)


def uniform_policies(structure: ModelStructure, widths: Widths) -> tuple[Policy, ...]:
    """Return the policies with about the same width ratio everywhere, on allowed widths.

    The ratios are those of the component with the most allowed widths; every other component
    takes its nearest width. Blocks and image tokens are kept.
    """
    matrices = [c for c in structure.components if c.kind in structure.kinds]
    finest = max(matrices, key=lambda component: len(widths[component.id]))
    policies: dict[Policy, None] = {}
    for width in widths[finest.id]:
        ratio = width / finest.width
        nearest = [
            _nearest(widths[component.id], ratio * component.width)
            if component.kind in structure.kinds
            else component.width
            for component in structure.components
        ]
        policies[Policy.of(structure, nearest)] = None
    return tuple(policies)


def _nearest(widths: Sequence[int], target: float) -> int:
    return min(widths, key=lambda width: abs(width - target))
