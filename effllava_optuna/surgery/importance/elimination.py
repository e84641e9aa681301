"""Greedy elimination of units by the optimal brain surgeon, in blocks.

With H the damped second moments, P = inv(H) and W the output matrix, removing the columns S of a
unit and fitting the other columns to replace them costs tr(W_S inv(P_SS) W_S^T). The removal
changes P by -P_:S inv(P_SS) P_S: and W by -W_S inv(P_SS) P_S: (Hassibi et al. 1993). The costs
depend on W only through G = W^T W. With P_SS = L L^T, one removal is

    Z = inv(L) P_S:              P <- P - Z^T Z
    K = inv(L) G_SS inv(L)^T     E = inv(L) G_S: - K Z / 2
                                 G <- G - E^T Z - Z^T E

Within a block of removals only the diagonal blocks of P and G, which decide the next removal, are
updated at once; a row of P or G is computed from the Z and E of the block when its unit is
removed. After the block, P and G are updated by matrix products. The result is that of unblocked
elimination up to rounding. Time: some three times the cube of the number of columns in
floating-point operations, nearly all of them in matrix products.
"""

from __future__ import annotations

import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.surgery.importance.moments import ridge_penalty

# Fraction of the mean of the diagonal (Frantar and Alistarh 2023).
OBS_DAMPING = 1e-2
# Columns removed between two updates of the whole matrices.
_BLOCK_COLUMNS = 64
# The matrices lose the removed columns when less than this share of their columns remains.
_COMPACT_BELOW = 0.75


def elimination_order(
    weight: torch.Tensor, matrix: torch.Tensor, unit_columns: int, damping: float = OBS_DAMPING
) -> torch.Tensor:
    """Remove the unit of least cost, fit the other units to replace it, and repeat.

    Args:
        weight: Shape ``(out, columns)``, float64.
        matrix: Shape ``(columns, columns)``, float64: second moments.
        unit_columns: Columns of one unit.
        damping: Fraction of the mean of the diagonal of ``matrix`` that is added to it.

    Returns:
        Shape ``(units,)``: the step at which the unit is removed, from 0.

    Raises:
        ModelError: The damped matrix has no Cholesky factor.
    """
    damped = matrix.clone()
    damped.diagonal().add_(ridge_penalty(matrix.diagonal(), damping))
    lower = _factor(damped)
    del damped
    elimination = _Elimination(torch.cholesky_inverse(lower), weight.T @ weight, unit_columns)
    del lower
    units = len(matrix) // unit_columns
    removed_at = torch.empty(units, dtype=torch.float64, device=matrix.device)
    for step in range(units):
        removed_at[elimination.remove_cheapest()] = step
    return removed_at


class _Elimination:
    """P and G of the units that remain, with a block of pending removals.

    Args:
        inverse: P, shape ``(columns, columns)``; changed in place.
        gram: G, of the same shape; changed in place.
        unit_columns: Columns of one unit.
    """

    def __init__(self, inverse: torch.Tensor, gram: torch.Tensor, unit_columns: int) -> None:
        self._inverse, self._gram, self._size = inverse, gram, unit_columns
        self._units = torch.arange(len(inverse) // unit_columns, device=inverse.device)
        self._remaining = torch.ones_like(self._units, dtype=torch.bool)
        self._inverse_blocks = _diagonal_blocks(inverse, unit_columns)
        self._gram_blocks = _diagonal_blocks(gram, unit_columns)
        # The Z and E of the pending removals, one above the other.
        self._z = inverse.new_empty(max(_BLOCK_COLUMNS, unit_columns), len(inverse))
        self._e = torch.empty_like(self._z)
        self._pending = 0

    def remove_cheapest(self) -> torch.Tensor:
        """Remove the unit of least cost, and return its number."""
        index = int(self._costs().argmin())
        number = self._units[index].clone()
        first, last = self._pending, self._pending + self._size
        z, e = self._removal(index)
        self._z[first:last], self._e[first:last] = z, e
        self._pending = last
        z_units, e_units = (
            rows.view(self._size, -1, self._size).permute(1, 0, 2) for rows in (z, e)
        )
        mixed = e_units.mT @ z_units
        self._inverse_blocks -= z_units.mT @ z_units
        self._gram_blocks -= mixed + mixed.mT
        # Only rounding errors are left in the block of a removed unit.
        self._inverse_blocks[index] = torch.eye(self._size, dtype=z.dtype, device=z.device)
        self._remaining[index] = False
        if self._pending + self._size > len(self._z):
            self._apply_pending()
        return number

    def _costs(self) -> torch.Tensor:
        """Compute tr(inv(P_SS) G_SS) for each unit; infinity for the removed ones."""
        if self._size == 1:
            costs = (self._gram_blocks / self._inverse_blocks)[:, 0, 0]
        else:
            # By Cholesky, not by LU: with torch 2.13 and MKL on two threads, a batched LU of
            # systems of 160 or more columns does not return.
            fitted = torch.cholesky_solve(self._gram_blocks, _factor(self._inverse_blocks))
            costs = fitted.diagonal(dim1=1, dim2=2).sum(1)
        return costs.masked_fill(~self._remaining, torch.inf)

    def _removal(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the Z and E of the removal of one unit."""
        columns = slice(index * self._size, (index + 1) * self._size)
        z_before, e_before = self._z[: self._pending], self._e[: self._pending]
        z_here, e_here = z_before[:, columns].T, e_before[:, columns].T
        lower = _factor(self._inverse_blocks[index])
        z = _solve(lower, self._inverse[columns] - z_here @ z_before)
        e = _solve(lower, self._gram[columns] - e_here @ z_before - z_here @ e_before)
        return z, e - 0.5 * _solve(lower, e[:, columns].T).T @ z

    def _apply_pending(self) -> None:
        """Apply the pending removals to P and G."""
        z, e = self._z[: self._pending], self._e[: self._pending]
        self._inverse.addmm_(z.T, z, alpha=-1)
        self._gram.addmm_(e.T, z, alpha=-1).addmm_(z.T, e, alpha=-1)
        self._pending = 0
        if int(self._remaining.sum()) < _COMPACT_BELOW * len(self._units):
            self._compact()

    def _compact(self) -> None:
        """Remove the columns of the removed units from all matrices."""
        units = self._remaining.nonzero()[:, 0]
        columns = self._remaining.repeat_interleave(self._size).nonzero()[:, 0]
        self._inverse = self._inverse[columns[:, None], columns]
        self._gram = self._gram[columns[:, None], columns]
        self._inverse_blocks = self._inverse_blocks[units]
        self._gram_blocks = self._gram_blocks[units]
        self._z, self._e = (rows.new_empty(len(rows), len(columns)) for rows in (self._z, self._e))
        self._units, self._remaining = self._units[units], self._remaining[units]


def _diagonal_blocks(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """Copy the diagonal blocks of a matrix, shape ``(blocks, size, size)``."""
    blocks = matrix.view(len(matrix) // size, size, -1, size).diagonal(dim1=0, dim2=2)
    return blocks.permute(2, 0, 1).clone()


def _factor(matrices: torch.Tensor) -> torch.Tensor:
    lower: torch.Tensor
    lower, failed = torch.linalg.cholesky_ex(matrices)
    if bool(failed.any()):
        raise ModelError(
            f"The moments of {matrices.shape[-1]} columns cannot be inverted for the importance "
            "'obs'.",
            hint="Use more calibration samples, or the importance 'taylor'.",
        )
    return lower


def _solve(lower: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    solution: torch.Tensor = torch.linalg.solve_triangular(lower, right, upper=False)
    return solution
