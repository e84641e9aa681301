"""Access to the modules and weights of one component of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from effllava_optuna.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from effllava_optuna.policy import Component


def element_indices(units: torch.Tensor, per_unit: int) -> torch.Tensor:
    """Return the rows or columns of ``units``: shape ``(units * per_unit,)``."""
    offsets = torch.arange(per_unit, device=units.device)
    return (units[:, None] * per_unit + offsets).reshape(-1)


@dataclass(frozen=True, slots=True)
class UnitRows:
    """Which rows of a weight matrix belong to which unit.

    Attributes:
        parts: Rows per unit in each of the matrices that are stacked in this one: one number for
            a plain matrix, three for a fused query-key-value matrix, two for a fused gate-up
            matrix.
    """

    parts: tuple[int, ...]

    @property
    def per_unit(self) -> int:
        """Count the rows of one unit."""
        return sum(self.parts)

    def indices(self, units: torch.Tensor, width: int) -> torch.Tensor:
        """Return the rows of ``units`` in a matrix of ``width`` units, part by part."""
        starts = [width * sum(self.parts[:part]) for part in range(len(self.parts))]
        return torch.cat(
            [
                start + element_indices(units, per_unit)
                for start, per_unit in zip(starts, self.parts, strict=True)
            ]
        )

    def sum_by_unit(self, values: torch.Tensor, width: int) -> torch.Tensor:
        """Sum ``values``, one per row of a matrix of ``width`` units: shape ``(width,)``."""
        stacked = torch.split(values, [width * per_unit for per_unit in self.parts])
        return torch.stack([part.reshape(width, -1).sum(1) for part in stacked]).sum(0)


@dataclass(frozen=True, slots=True)
class ComponentHandle:
    """An attention or MLP module whose width can be reduced.

    Attributes:
        component: The component.
        module: The attention or MLP module.
        inputs: Names of the linear children whose rows are units, with the rows of one unit.
        output: Name of the linear child whose columns are units.
        columns: Columns of ``output`` per unit.
        counts: Integer attributes of ``module`` that are proportional to the width, with their
            value per unit.
    """

    component: Component
    module: nn.Module
    inputs: Mapping[str, UnitRows]
    output: str
    columns: int
    counts: Mapping[str, int]

    def linear(self, name: str) -> nn.Linear:
        """Return the linear layer at the path ``name`` below the module."""
        child = self.module._modules.get(name)
        if child is None:
            child = self.module.get_submodule(name)
        if not isinstance(child, nn.Linear):
            raise ModelError(
                f"{self.component.id}: {name} is a {type(child).__name__}, not a Linear."
            )
        return child


@dataclass(frozen=True, slots=True)
class BlockHandle:
    """A whole block of the decoder that can be removed.

    Attributes:
        component: Of kind ``block``, with one unit and a floor of 0.
        module: The block; it returns the sum of its input and what it computes.
        stack: The list of blocks that contains it.
        config: The configuration of the decoder, some fields of which refer to blocks by number.
    """

    component: Component
    module: nn.Module
    stack: nn.ModuleList
    config: object
