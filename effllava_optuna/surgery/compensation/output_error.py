"""Estimate what the answer margin changes by when one component alone is narrowed.

Narrowing changes the output of a component at token t by an error e_t. With g_t the gradient of
the margin at that output, the margin changes by the sum of g_t . e_t (the layer-wise estimate of
the optimal brain surgeon, Hassibi et al. 1993). If errors have no preferred direction and are
independent between tokens, its mean square over samples is

    1 / samples * sum over t of ||g_t||^2 ||e_t||^2 / d

with d outputs. Gradients are known at the inputs of the output matrix W, where they are W^T g_t:
their squared norm is that of g_t times ||W||_F^2 / d. With E[w ||e||^2] the mean over tokens under
the weights of `Moments`, which are normalised to the mean 1, the estimate becomes

    E[w ||e||^2] * sum over t of ||W^T g_t||^2 / (samples * ||W||_F^2)

All components have this unit, squared logits, and a component with larger weights and smaller
inputs has the same value. Squares of independent changes add up, as allocation assumes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from effllava_optuna.policy import Kind
from effllava_optuna.surgery.structure.component_handle import element_indices

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import Component, ComponentId, ModelStructure
    from effllava_optuna.surgery.importance.moments import Moments
    from effllava_optuna.surgery.importance.unit_statistics import UnitStatistics
    from effllava_optuna.surgery.structure.component_handle import ComponentHandle


@dataclass(frozen=True, slots=True)
class OutputErrors:
    """Errors of one component's output, E[w ||e||^2] under its token weights.

    Attributes:
        scale: Mean squared change of the margin for each unit of an error.
        lost: The error if the component computes nothing.
        unfitted: By number of units kept, the error without fitted weights; empty if the
            component is fitted.
    """

    scale: float
    lost: float
    unfitted: Mapping[int, float]

    @staticmethod
    def of(
        handle: ComponentHandle,
        statistics: UnitStatistics,
        samples: int,
        units: torch.Tensor,
        widths: Sequence[int],
        compensation: str,
    ) -> OutputErrors:
        """Compute the errors of a component from its statistics on all samples.

        Args:
            handle: The component.
            statistics: Its statistics on all samples, columns in the model's present order.
            samples: Number of samples, with those that do not run the component.
            units: Shape ``(width,)``: unit numbers, most important first.
            widths: Numbers of units kept.
            compensation: One of `COMPENSATIONS`.
        """
        output, moments = handle.linear(handle.output), statistics.moments
        weight = output.weight.detach()
        squared_norm = float(weight.double().pow(2).sum())
        unfitted: dict[int, float] = {}
        if compensation != "least-squares":
            columns = element_indices(units, handle.columns).to(weight.device)
            second = moments.matrix
            errors = removal_errors(
                weight[:, columns],
                second[columns] if second.dim() == 1 else second[columns[:, None], columns],
                [width * handle.columns for width in widths],
                mean=moments.mean[columns] if compensation == "bias" else None,
            )
            unfitted = {kept // handle.columns: error for kept, error in errors.items()}
        return OutputErrors(
            statistics.squared_gradient / (samples * squared_norm) if squared_norm > 0 else 0.0,
            lost_output_error(weight, output.bias, moments),
            unfitted,
        )

    def residuals(self, fitted: Mapping[int, float]) -> dict[int, float]:
        """Return the estimates by width, non-decreasing as the width falls.

        The errors of removed units can cancel each other out. Allocation must not rely on that:
        each width has at least the error of the wider ones.

        Args:
            fitted: By number of units kept, the errors with fitted weights; empty: not fitted.
        """
        errors = fitted or self.unfitted
        widths = sorted(errors, reverse=True)
        highest = accumulate((self.scale * errors[width] for width in widths), max)
        return dict(sorted(zip(widths, highest, strict=True)))


def removal_errors(
    weight: torch.Tensor,
    second: torch.Tensor,
    columns: Sequence[int],
    *,
    mean: torch.Tensor | None = None,
) -> dict[int, float]:
    """Compute E[w ||e||^2] if the last columns are removed and the others are not fitted.

    Args:
        weight: Shape ``(out, columns)``, columns in ranking order, most important first.
        second: E[w x x^T], shape ``(columns, columns)``, in the same order; or its diagonal, shape
            ``(columns,)``, which takes the columns as uncorrelated.
        columns: Numbers of columns kept.
        mean: E[w x], shape ``(columns,)``, if the mean output of the removed columns is added to
            the bias; None if it is not.

    Returns:
        By number of columns kept.
    """
    dense = weight.double()
    if second.dim() == 1:
        variances = second if mean is None else second - mean.pow(2)
        products = variances * dense.pow(2).sum(0)
    else:
        products = (dense.T @ dense).mul_(
            second if mean is None else second - torch.outer(mean, mean)
        )
    return {
        kept: max(0.0, float(products[(slice(kept, None),) * products.dim()].sum()))
        for kept in columns
    }


def lost_output_error(weight: torch.Tensor, bias: torch.Tensor | None, moments: Moments) -> float:
    """Compute E[w ||W x + b||^2]: the error if a component computes nothing.

    Args:
        weight: Shape ``(out, columns)``, columns in the order of ``moments``.
        bias: Shape ``(out,)``; None if the layer has none.
        moments: Moments of the inputs; if they are diagonals, columns count as uncorrelated.
    """
    error = removal_errors(weight, moments.matrix, [0])[0]
    if bias is not None:
        constant = bias.double()
        error += float(2 * constant @ (weight.double() @ moments.mean) + constant @ constant)
    return max(0.0, error)


def block_residuals(
    structure: ModelStructure,
    residuals: Mapping[ComponentId, Mapping[int, float]],
    lost: Mapping[ComponentId, float],
) -> dict[ComponentId, dict[int, float]]:
    """Estimate what the removal of whole blocks costs, from the attention and MLP inside.

    A block adds the outputs of both to its input, and loses both with it. It costs at least as
    much as its attention and MLP at their narrowest.

    Args:
        structure: The structure of the model.
        residuals: By component, the estimates by width.
        lost: By component, the estimate if it computes nothing.

    Returns:
        By block; not for a block that contains a part without an estimate.
    """
    blocks = {}
    for block in structure.components:
        if block.kind is Kind.BLOCK:
            inside = _contents(structure, block, residuals)
            if inside is not None:
                removed = sum(
                    max(lost[component], *residuals[component].values()) for component in inside
                )
                blocks[block.id] = {0: removed, 1: 0.0}
    return blocks


def _contents(
    structure: ModelStructure, block: Component, known: Mapping[ComponentId, object]
) -> list[ComponentId] | None:
    """Return the attention and MLP of a block; None unless both are in ``known``."""
    inside = [
        component
        for component in structure.components
        if (component.tower, component.layer) == (block.tower, block.layer)
        and component.id in known
    ]
    complete = {component.kind for component in inside} == {Kind.ATTN, Kind.MLP}
    return [component.id for component in inside] if complete else None
