"""Moments of a site's inputs, as sums over tokens that can be added up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

# Share of a token's weight that its gradient decides. Image tokens outnumber those that carry
# the answer; the rest is uniform, so that no token is without weight.
GRADIENT_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over tokens, each token with a weight w.

    Attributes:
        second: Of w x x^T, shape ``(columns, columns)``, float64; its diagonal alone, shape
            ``(columns,)``; or of w x y^T, shape ``(columns, others)``.
        first: Of w x, shape ``(columns,)``, float64.
        weight: Of w.
        squares: Of w^2.
    """

    second: torch.Tensor
    first: torch.Tensor
    weight: float
    squares: float

    @staticmethod
    def of(
        x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor | None = None, *, full: bool
    ) -> Sums:
        """Sum over the rows of ``x``, shape ``(tokens, columns)``, and of ``y``, if given."""
        scaled = x * weight[:, None]
        return Sums(
            scaled.T @ (x if y is None else y) if full else (scaled * x).sum(0),
            scaled.sum(0),
            float(weight.sum()),
            float(weight.pow(2).sum()),
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.second + other.second,
            self.first + other.first,
            self.weight + other.weight,
            self.squares + other.squares,
        )


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of the inputs of one site's output matrix under token weights.

    Attributes:
        focus: Sums under what sets tokens apart: the squared norm of the margin's gradient there,
            or whether the token is one that counts.
        rest: Sums in which all tokens weigh the same, for the rest of the weight; None: there is
            no rest.
    """

    focus: Sums
    rest: Sums | None = None

    def __add__(self, other: Moments) -> Moments:
        rest = self.rest + other.rest if self.rest and other.rest else None
        return Moments(self.focus + other.focus, rest)

    @property
    def matrix(self) -> torch.Tensor:
        """Give E[w x x^T], shape ``(columns, columns)``, or its diagonal.

        With the gradient, w = 0.9 g^2 / mean(g^2) + 0.1.
        """
        return self._mean(lambda sums: sums.second)

    @property
    def mean(self) -> torch.Tensor:
        """Give E[w x], shape ``(columns,)``."""
        return self._mean(lambda sums: sums.first)

    @property
    def squares(self) -> torch.Tensor:
        """Give E[w x^2], shape ``(columns,)``."""
        found = self.matrix
        return found.diagonal() if found.dim() == 2 else found

    @property
    def effective_tokens(self) -> float:
        """Give Kish's effective number of tokens, (sum w)^2 / sum w^2."""
        share = self._share
        focused = self.focus.squares / self.focus.weight**2 if self.focus.weight > 0 else 0.0
        # w = s u / mean(u) + 1 - s has sum n and sum of squares s^2 n^2 focused + (1 - s^2) n.
        uniform = 1 / self.rest.weight if self.rest and self.rest.weight else 0.0
        inverse = share**2 * focused + (1 - share**2) * uniform
        return 1 / inverse if inverse > 0 else 0.0

    @property
    def _share(self) -> float:
        if self.rest is None:
            return 1.0
        return GRADIENT_SHARE if self.focus.weight > 0 else 0.0

    def _mean(self, of: Callable[[Sums], torch.Tensor]) -> torch.Tensor:
        found = of(self.focus) * (self._share / (self.focus.weight or 1.0))
        if self.rest is not None:
            found.add_(of(self.rest), alpha=(1 - self._share) / (self.rest.weight or 1.0))
        return found
