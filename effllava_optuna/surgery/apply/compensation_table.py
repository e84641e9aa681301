"""Output matrices that replace the original ones after pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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

_PARTS = ("weight", "bias")


def table_tensors(compensations: Sequence[CompensationTable | None]) -> dict[str, torch.Tensor]:
    """Return the tensors of the tables of all fits, by name."""
    return {
        f"{fit}/{component}/{count}/{part}": tensor
        for fit, compensation in enumerate(compensations)
        for (component, count), fitted in (compensation or {}).items()
        for part in _PARTS
        if (tensor := getattr(fitted, part)) is not None
    }


def tables_of(
    tensors: Mapping[str, torch.Tensor], fits: Sequence[bool]
) -> tuple[CompensationTable | None, ...]:
    """Return the tables that `table_tensors` took apart.

    Args:
        tensors: Tensors by name.
        fits: For each fit whether it has a table.
    """
    tables: list[dict[tuple[ComponentId, int], FittedOutput] | None] = [
        {} if fitted else None for fitted in fits
    ]
    for name, tensor in tensors.items():
        fit, component, count, part = name.split("/")
        table = tables[int(fit)]
        if table is not None:
            key = ComponentId(component), int(count)
            table[key] = replace(table.get(key, FittedOutput()), **{part: tensor})
    return tuple(tables)
