"""Fit the output matrix of a site to the units that stay, for every width at once.

With C = E[w x x^T] + damping = L L^T in the order of the units, and A = W L, the least-squares
fit for the first k columns is W_k = A[:, :k] inv(L[:k, :k]), and its damped residual is the sum
of ||A[:, j]||^2 over the columns j >= k: one factorisation serves all widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import SiteId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.surgery.moments import Moments

# Tried in this order; shares of the mean of the diagonal of C.
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
REFITS = ("none", "bias", "least-squares")


@dataclass(frozen=True, slots=True)
class Fitted:
    """What takes the place of an output matrix and its bias when some units stay.

    Attributes:
        weight: Shape ``(out, count * columns)``; None: the columns that stay, as they are.
        bias: Shape ``(out,)``, the original bias included; None: the original bias, if any.
    """

    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Count the bytes that are held."""
        return sum(part.nbytes for part in (self.weight, self.bias) if part is not None)


Refit = Mapping[tuple[SiteId, int], Fitted]


@dataclass(frozen=True, slots=True)
class Fit:
    """Fits of one output matrix.

    Attributes:
        weights: By number of columns kept, shape ``(out, kept)``.
        damage: Shape ``(columns + 1,)``: the damped residual when the first j columns stay,
            non-increasing, 0 at the end.
    """

    weights: dict[int, torch.Tensor]
    damage: torch.Tensor


def least_squares(
    weight: torch.Tensor,
    matrix: torch.Tensor,
    columns: Sequence[int],
    damping: float,
) -> Fit:
    """Fit ``weight`` to its first columns, for each number of ``columns``.

    Args:
        weight: Shape ``(out, columns)``, its columns in order, most important first.
        matrix: Shape ``(columns, columns)``: E[w x x^T] in the same order, float64.
        columns: How many columns stay; each gets a fit.
        damping: Share of the mean of the diagonal of ``matrix`` that is added to it; > 0.

    Raises:
        ModelError: The damped matrix has no Cholesky factor.
    """
    damped = matrix.to(torch.float64, copy=True)
    damped.diagonal().add_(ridge(matrix, damping))
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        raise ModelError(
            f"The moments of {len(matrix)} columns cannot be factored with damping {damping}.",
            hint="Use a larger damping or more calibration samples.",
        )
    projected = weight.double() @ lower
    energy = projected.pow(2).sum(0)
    damage = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    weights = {kept: _solved(projected, lower, kept).to(weight.dtype) for kept in columns}
    return Fit(weights, damage)


def mean_biases(
    weight: torch.Tensor, bias: torch.Tensor | None, mean: torch.Tensor, columns: Sequence[int]
) -> dict[int, torch.Tensor]:
    """Let the bias say what the removed columns say on average (An et al. 2024).

    Args:
        weight: Shape ``(out, columns)``, its columns in order, most important first.
        bias: Shape ``(out,)``, if there is one.
        mean: Shape ``(columns,)``: E[w x] in the same order.
        columns: How many columns stay; each gets a bias.
    """
    own = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
    if bias is not None:
        own += bias
    dense, said = weight.double(), mean.double()
    return {kept: (own + dense[:, kept:] @ said[kept:]).to(weight.dtype) for kept in columns}


def choose_damping(
    weight: torch.Tensor,
    folds: Sequence[Moments],
    order: torch.Tensor,
    columns: Sequence[int],
) -> float:
    """Choose the damping that fits best the folds it did not see.

    Args:
        weight: Shape ``(out, columns)``, in order.
        folds: The moments of each fold, at least two.
        order: Shape ``(columns,)``: the columns of the moments, most important first.
        columns: Numbers of columns kept at which the fits are compared.
    """
    errors = dict.fromkeys(DAMPINGS, 0.0)
    dense = weight.double()
    for index, held_out in enumerate(folds):
        seen = without(folds, index).matrix[order][:, order]
        unseen = held_out.matrix[order][:, order]
        for damping in DAMPINGS:
            fit = least_squares(weight, seen, columns, damping)
            for kept, fitted in fit.weights.items():
                change = -dense
                change[:, :kept] += fitted.double()
                errors[damping] += float(((change @ unseen) * change).sum())
    return min(DAMPINGS, key=errors.__getitem__)


def without(folds: Sequence[Moments], index: int | None = None) -> Moments:
    """Add up the moments of all folds but one; of all, where none is named."""
    rest = [fold for other, fold in enumerate(folds) if other != index]
    return sum(rest[1:], start=rest[0])


def ridge(matrix: torch.Tensor, damping: float) -> float:
    """Give what ``damping`` adds to the diagonal of ``matrix``."""
    mean = float(matrix.diagonal().double().mean())
    return damping * mean if mean > 0 else 1.0


def _solved(projected: torch.Tensor, lower: torch.Tensor, kept: int) -> torch.Tensor:
    solved: torch.Tensor = torch.linalg.solve_triangular(
        lower[:kept, :kept], projected[:, :kept], upper=False, left=False
    )
    return solved
