"""Sensitivity curves: what the loss gains when one gene alone is narrowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy.interpolate import PchipInterpolator

from effllava_optuna.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from effllava_optuna.policy import Costs, Gene, Space

Sensitivity: TypeAlias = Mapping[str, Mapping[int, float]]
"""By name of the gene and width: the loss at this width minus the loss at the centre."""


def curve_policies(space: Space, count: int) -> list[Policy]:
    """Return the dense policy, and policies that narrow one gene of it.

    Args:
        space: The genes and their widths.
        count: Widths of each gene, spaced evenly over its allowed widths; the narrowest is one of
            them, the dense width is not counted.
    """
    dense = Policy.dense(space.structure)
    policies = [dense]
    for gene in space.genes:
        positions = np.linspace(0, len(gene.widths) - 1, min(count, len(gene.widths) - 1) + 1)
        widths = dict.fromkeys(gene.widths[round(position)] for position in positions[:-1])
        policies += [space.with_width(dense, gene, width) for width in widths]
    return policies


def neighbouring_policies(space: Space, centre: Policy, levels: int) -> list[Policy]:
    """Return the centre, and policies that move one gene of it by up to ``levels`` levels.

    Args:
        space: The genes and their widths.
        centre: Its widths are moved to the nearest allowed ones.
        levels: The most levels that a gene moves, down and up.
    """
    centre = space.decode(space.encode(centre)).policy
    policies = [centre]
    for gene in space.genes:
        level = gene.widths.index(centre.widths[gene.components[0]])
        low = max(level - levels, 0)
        policies += [
            space.with_width(centre, gene, width)
            for width in gene.widths[low : level + levels + 1]
            if width != gene.widths[level]
        ]
    return policies


def sensitivity_curves(
    space: Space, centre: Policy, losses: Mapping[tuple[int, ...], float]
) -> dict[str, dict[int, float]]:
    """Compute the curves around a policy from the losses of policies near it.

    Between measured widths a curve is interpolated monotonically (PCHIP, Fritsch & Butland 1984)
    over the logarithm of the width; it ends at the outermost measured widths. If the centre is
    the dense policy, curves are made monotone: the loss at a width is at least that at all larger
    widths.

    Args:
        space: The genes and their widths.
        centre: The policy at which all curves are 0.
        losses: By the widths of a policy; the centre is one of them.

    Returns:
        By gene; the widths of a gene ascending.
    """
    dense = centre == Policy.dense(space.structure)
    curves = {}
    for gene in space.genes:
        measured = _measured(space, centre, gene, losses)
        if dense:
            worst = -math.inf
            for width in sorted(measured, reverse=True):
                worst = measured[width] = max(worst, measured[width])
        curves[gene.name] = _interpolated(gene, measured)
    return curves


def residual_curves(space: Space, residuals: Costs) -> dict[str, dict[int, float]]:
    """Return the curves of genes around the dense policy, from estimates for each component.

    Args:
        space: The genes and their widths.
        residuals: By component and width, what narrowing the component alone is estimated to cost;
            a component without an estimate stays dense.

    Returns:
        By gene, the sum over its components; the widths of a gene ascending.
    """
    curves = {}
    for gene in space.genes:
        components = [space.structure.components[index].id for index in gene.components]
        curves[gene.name] = {gene.widths[-1]: 0.0}
        if all(component in residuals for component in components):
            curves[gene.name] = {
                width: sum(residuals[component][width] for component in components)
                for width in gene.widths
            }
    return curves


def _measured(
    space: Space, centre: Policy, gene: Gene, losses: Mapping[tuple[int, ...], float]
) -> dict[int, float]:
    base = losses[centre.widths]
    varied = {
        width: losses.get(space.with_width(centre, gene, width).widths) for width in gene.widths
    }
    measured = {width: loss - base for width, loss in varied.items() if loss is not None}
    return measured | {centre.widths[gene.components[0]]: 0.0}


def _interpolated(gene: Gene, measured: Mapping[int, float]) -> dict[int, float]:
    known = sorted(measured)
    if len(known) < 2:
        return dict(measured)
    curve = PchipInterpolator(_log(known), [measured[width] for width in known])
    inside = [width for width in gene.widths if known[0] <= width <= known[-1]]
    return dict(zip(inside, map(float, curve(_log(inside))), strict=True)) | dict(measured)


def _log(widths: Sequence[int]) -> NDArray[np.float64]:
    return np.log(np.maximum(widths, 0.5))  # a removed block has width 0


def losses_by_widths(
    measured: Iterable[tuple[Policy, float]],
) -> dict[tuple[int, ...], float]:
    """Return the first loss of each policy."""
    losses: dict[tuple[int, ...], float] = {}
    for policy, loss in measured:
        losses.setdefault(policy.widths, loss)
    return losses
