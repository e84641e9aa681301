"""Compute the least-squares compensation of one component for every width.

With C = E[w x x^T] + damping = L L^T in ranking order, and A = W L, the least-squares fit for the
first k columns is W_k = A[:, :k] inv(L[:k, :k]), and its damped residual is the sum of
||A[:, j]||^2 over the columns j >= k: one factorisation serves all widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.surgery.importance.moments import ridge_penalty

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.surgery.importance.moments import Moments

# Fractions of the mean of the diagonal of C. The first of equally good ones is chosen.
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
COMPENSATIONS = ("none", "bias", "least-squares")


@dataclass(frozen=True, slots=True)
class LeastSquaresFit:
    """Least-squares fits of one output matrix.

    Attributes:
        weights: By number of columns kept, shape ``(out, kept)``.
        residuals: Shape ``(columns + 1,)``: the damped residual if the first j columns are kept;
            non-increasing, 0 at the end.
    """

    weights: dict[int, torch.Tensor]
    residuals: torch.Tensor


def least_squares(
    weight: torch.Tensor,
    matrix: torch.Tensor,
    columns: Sequence[int],
    damping: float,
) -> LeastSquaresFit:
    """Fit ``weight`` to its first columns, for each number in ``columns``.

    Args:
        weight: Shape ``(out, columns)``, columns in ranking order, most important first.
        matrix: Shape ``(columns, columns)``: E[w x x^T] in the same order, float64.
        columns: Numbers of columns kept.
        damping: Fraction of the mean of the diagonal of ``matrix`` that is added to it; > 0.

    Raises:
        ModelError: The damped matrix has no Cholesky factor.
    """
    damped = matrix.to(torch.float64, copy=True)
    damped.diagonal().add_(ridge_penalty(matrix.diagonal(), damping))
    lower = cholesky_factor(damped, f"{len(matrix)} columns", damping)
    projected = weight.double() @ lower
    energy = projected.pow(2).sum(0)
    residuals = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    weights = {kept: _fit_prefix(projected, lower, kept).to(weight.dtype) for kept in columns}
    return LeastSquaresFit(weights, residuals)


def fit_to_target(
    target: torch.Tensor, lower: torch.Tensor, columns: Sequence[int]
) -> dict[int, torch.Tensor]:
    """Fit any outputs t to the first columns of the inputs x, for each number in ``columns``.

    With C = L L^T, the fit E[w t x^T] inv(C) is A[:, :k] inv(L[:k, :k]) for the first k columns,
    where A = E[w t x^T] inv(L^T): one factorisation serves all widths here, too.

    Args:
        target: E[w t x^T], shape ``(out, columns)``, float64, with the penalty that ``lower`` has.
        lower: The factor L, shape ``(columns, columns)``.
        columns: Numbers of columns kept.

    Returns:
        By number of columns kept, the fit in float64, shape ``(out, kept)``.
    """
    projected = torch.linalg.solve_triangular(lower, target.T, upper=False).T
    return {kept: _fit_prefix(projected, lower, kept) for kept in columns}


def cholesky_factor(damped: torch.Tensor, name: str, damping: float) -> torch.Tensor:
    """Compute the lower Cholesky factor of a damped matrix of moments.

    Raises:
        ModelError: There is none; the message has ``name`` and ``damping``.
    """
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        raise ModelError(
            f"The moments of {name} cannot be factored with damping {damping}.",
            hint="Use a larger damping or more calibration samples.",
        )
    factor: torch.Tensor = lower
    return factor


def mean_biases(
    weight: torch.Tensor, bias: torch.Tensor | None, mean: torch.Tensor, columns: Sequence[int]
) -> dict[int, torch.Tensor]:
    """Add the mean output of the removed columns to the bias (An et al. 2024).

    Args:
        weight: Shape ``(out, columns)``, columns in ranking order, most important first.
        bias: Shape ``(out,)``; None if the layer has none.
        mean: Shape ``(columns,)``: E[w x] in the same order.
        columns: Numbers of columns kept.

    Returns:
        By number of columns kept, the new bias, shape ``(out,)``.
    """
    original = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    if bias is not None:
        original += bias
    dense, means = weight.double(), mean.double()
    return {kept: (original + dense[:, kept:] @ means[kept:]).to(weight.dtype) for kept in columns}


def choose_damping(
    weight: torch.Tensor,
    folds: Sequence[Moments],
    ranking: torch.Tensor,
    columns: Sequence[int],
) -> float:
    """Choose the damping of `DAMPINGS` with the smallest error on held-out folds.

    Args:
        weight: Shape ``(out, columns)``, columns in ranking order.
        folds: The moments of each fold, at least two.
        ranking: Shape ``(columns,)``: the columns of the moments, most important first.
        columns: Numbers of columns kept at which the fits are compared.
    """
    errors = dict.fromkeys(DAMPINGS, 0.0)
    dense = weight.double()
    for index, held_out in enumerate(folds):
        fitted_moments = sum_folds(folds, left_out=index).matrix[ranking][:, ranking]
        moments = held_out.matrix[ranking][:, ranking].double()
        outputs = dense @ moments
        energy = (outputs * dense).sum()
        for damping in DAMPINGS:
            fit = least_squares(weight, fitted_moments, columns, damping)
            # E[w ||W x - W_k x_k||^2], expanded: W_k x_k reads the first k columns only.
            for kept, fitted in fit.weights.items():
                narrow = fitted.double()
                cross = narrow @ moments[:kept, :kept] - 2 * outputs[:, :kept]
                errors[damping] += float(energy + (cross * narrow).sum())
    return min(DAMPINGS, key=errors.__getitem__)


def sum_folds(folds: Sequence[Moments], *, left_out: int | None = None) -> Moments:
    """Sum the moments of all folds, except the one with index ``left_out``."""
    added = [fold for index, fold in enumerate(folds) if index != left_out]
    return sum(added[1:], start=added[0])


def _fit_prefix(projected: torch.Tensor, lower: torch.Tensor, kept: int) -> torch.Tensor:
    """Compute W_k = A[:, :k] inv(L[:k, :k]) for k = ``kept``."""
    fitted: torch.Tensor = torch.linalg.solve_triangular(
        lower[:kept, :kept], projected[:, :kept], upper=False, left=False
    )
    return fitted
