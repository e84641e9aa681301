"""Weighted moments of the inputs of one component's output matrix, kept as sums over tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Part of a token's weight that its gradient decides. Image tokens outnumber those that carry the
# answer. The other part is the same for all tokens, so that no token has weight 0.
GRADIENT_PART = 0.9


@dataclass(frozen=True, slots=True)
class WeightedSums:
    """Sums over tokens, each token with a weight w.

    Attributes:
        second: Sum of w x x^T, shape ``(columns, columns)``, float64; or its diagonal, shape
            ``(columns,)``; or the sum of w x y^T, shape ``(columns, y_columns)``.
        first: Sum of w x, shape ``(columns,)``, float64.
        weights: Sum of w.
        squared_weights: Sum of w^2.
    """

    second: torch.Tensor
    first: torch.Tensor
    weights: float
    squared_weights: float

    @staticmethod
    def of(
        x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor | None = None, *, full: bool
    ) -> WeightedSums:
        """Compute the sums over the rows of ``x``, or of the pair ``x``, ``y``.

        Args:
            x: Shape ``(tokens, columns)``.
            weight: Shape ``(tokens,)``.
            y: Shape ``(tokens, y_columns)``; None: ``x`` itself.
            full: Compute the whole matrix; if false, its diagonal.
        """
        scaled = x * weight[:, None]
        return WeightedSums(
            second=scaled.T @ (x if y is None else y) if full else (scaled * x).sum(0),
            first=scaled.sum(0),
            weights=float(weight.sum()),
            squared_weights=float(weight.pow(2).sum()),
        )

    def __add__(self, other: WeightedSums) -> WeightedSums:
        return WeightedSums(
            second=self.second + other.second,
            first=self.first + other.first,
            weights=self.weights + other.weights,
            squared_weights=self.squared_weights + other.squared_weights,
        )


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of the inputs of one component's output matrix, with normalised token weights.

    Attributes:
        weighted: Sums with unequal token weights u: the squared norm of the margin's gradient at
            the token, or 1 for the selected tokens and 0 for the others.
        uniform: Sums with equal token weights, which make up the remaining `GRADIENT_PART`; None
            if ``weighted`` decides the whole weight.
    """

    weighted: WeightedSums
    uniform: WeightedSums | None = None

    def __add__(self, other: Moments) -> Moments:
        uniform = self.uniform + other.uniform if self.uniform and other.uniform else None
        return Moments(self.weighted + other.weighted, uniform)

    @property
    def matrix(self) -> torch.Tensor:
        """Return E[w x x^T], shape ``(columns, columns)``, or its diagonal.

        With gradient weights, w = 0.9 g^2 / mean(g^2) + 0.1.
        """
        return self._mean(lambda sums: sums.second)

    @property
    def mean(self) -> torch.Tensor:
        """Return E[w x], shape ``(columns,)``."""
        return self._mean(lambda sums: sums.first)

    @property
    def mean_squares(self) -> torch.Tensor:
        """Return E[w x^2], shape ``(columns,)``."""
        matrix = self.matrix
        return matrix.diagonal() if matrix.dim() == 2 else matrix

    @property
    def effective_tokens(self) -> float:
        """Compute Kish's effective number of tokens, (sum w)^2 / sum w^2."""
        part, sums, uniform = self._weighted_part, self.weighted, self.uniform
        inverse_weighted = sums.squared_weights / sums.weights**2 if sums.weights > 0 else 0.0
        # w = s u / mean(u) + 1 - s has the sum n, and the sum of squares
        # s^2 n^2 inverse_weighted + (1 - s^2) n.
        inverse_uniform = 1 / uniform.weights if uniform and uniform.weights else 0.0
        inverse = part**2 * inverse_weighted + (1 - part**2) * inverse_uniform
        return 1 / inverse if inverse > 0 else 0.0

    @property
    def _weighted_part(self) -> float:
        if self.uniform is None:
            return 1.0
        return GRADIENT_PART if self.weighted.weights > 0 else 0.0

    def _mean(self, of: Callable[[WeightedSums], torch.Tensor]) -> torch.Tensor:
        mean = of(self.weighted) * (self._weighted_part / (self.weighted.weights or 1.0))
        if self.uniform is not None:
            mean.add_(
                of(self.uniform), alpha=(1 - self._weighted_part) / (self.uniform.weights or 1.0)
            )
        return mean


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """Weights of the tokens of one batch, for the moments of one component.

    Attributes:
        weights: Shape ``(tokens,)``: the unequal token weights of `Moments`.
        uniform: Shape ``(tokens,)``: 1, or 0 at padding; None if ``weights`` decides alone.
    """

    weights: torch.Tensor
    uniform: torch.Tensor | None

    def moments(
        self, x: torch.Tensor, y: torch.Tensor | None = None, *, full: bool = True
    ) -> Moments:
        """Compute the moments of ``x``, or the cross moments of ``x`` and ``y``."""
        uniform = None
        if self.uniform is not None:
            uniform = WeightedSums.of(x, self.uniform, y, full=full)
        return Moments(WeightedSums.of(x, self.weights, y, full=full), uniform)


def joint_weights(batches: Sequence[TokenWeights]) -> list[TokenWeights]:
    """Merge the unequal and the equal weights of all batches, whose sums are then known.

    The moments with them are the same, and take half as many products.
    """
    uniforms = [batch.uniform for batch in batches if batch.uniform is not None]
    if len(uniforms) < len(batches):
        return [*batches]
    unequal = sum(float(batch.weights.sum()) for batch in batches)
    equal = sum(float(uniform.sum()) for uniform in uniforms) or 1.0
    part = GRADIENT_PART if unequal > 0 else 0.0
    return [
        TokenWeights(
            batch.weights * (part / (unequal or 1.0)) + uniform * ((1 - part) / equal), None
        )
        for batch, uniform in zip(batches, uniforms, strict=True)
    ]


def ridge_penalty(diagonal: torch.Tensor, damping: float) -> float:
    """Compute the number that damping adds to the diagonal of a matrix of second moments.

    Args:
        diagonal: Diagonal of the matrix, shape ``(columns,)``.
        damping: The penalty as a fraction of the mean of ``diagonal``.

    Returns:
        The penalty; 1 if the mean is not positive, so that a matrix of zeros can be factored.
    """
    mean = float(diagonal.double().mean())
    return damping * mean if mean > 0 else 1.0
