"""Output matrices that replace the original ones after pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from effllava_optuna.policy import ComponentId


@dataclass(frozen=True, slots=True)
class FittedOutput:
    """The output matrix and bias of a component for one set of kept units.

    Attributes:
        weight: Shape ``(out, count * columns)``; None: the original columns of the kept units.
        bias: Shape ``(out,)``, the original bias included; None: the original bias, if any.
    """

    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Count the bytes of both tensors."""
        return sum(part.nbytes for part in (self.weight, self.bias) if part is not None)


# By component and number of kept units.
CompensationTable = Mapping[tuple[ComponentId, int], FittedOutput]
