"""Where a site sits in a model, and what one of its units is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from effllava_optuna.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from effllava_optuna.policy import Site


def elements(units: torch.Tensor, each: int) -> torch.Tensor:
    """Give the rows or columns of ``units``, ``each`` to a unit: shape ``(units * each,)``."""
    return (units[:, None] * each + torch.arange(each, device=units.device)).reshape(-1)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a matrix that its units own.

    Attributes:
        parts: Rows that one unit has in each of the matrices that are stacked in it: one number
            as a rule, three in a fused query-key-value matrix, two in a fused gate and up matrix.
    """

    parts: tuple[int, ...]

    @property
    def each(self) -> int:
        """Count the rows of one unit."""
        return sum(self.parts)

    def index(self, units: torch.Tensor, width: int) -> torch.Tensor:
        """Give the rows of ``units`` in a matrix of ``width`` units, part by part."""
        starts = [width * sum(self.parts[:part]) for part in range(len(self.parts))]
        rows = zip(starts, self.parts, strict=True)
        return torch.cat([start + elements(units, each) for start, each in rows])

    def sums(self, values: torch.Tensor, width: int) -> torch.Tensor:
        """Add up by unit what each row of a matrix of ``width`` units has: shape ``(width,)``."""
        stacked = torch.split(values, [width * each for each in self.parts])
        return torch.stack([part.reshape(width, -1).sum(1) for part in stacked]).sum(0)


@dataclass(frozen=True, slots=True)
class Handle:
    """An attention or MLP module that can be narrowed.

    Attributes:
        site: The site.
        module: The attention or MLP module.
        inputs: Linear children that write the units, with the rows that one unit has.
        output: The linear child that reads the units.
        columns: Columns of ``output`` that one unit has.
        counts: Integer attributes of ``module`` that follow the width, with their value a unit.
    """

    site: Site
    module: nn.Module
    inputs: Mapping[str, Rows]
    output: str
    columns: int
    counts: Mapping[str, int]

    def linear(self, name: str) -> nn.Linear:
        """Give the linear layer at ``name`` below the module."""
        child = self.module._modules.get(name)
        if child is None:
            child = self.module.get_submodule(name)
        if not isinstance(child, nn.Linear):
            raise ModelError(f"{self.site.id}: {name} is a {type(child).__name__}, not a Linear.")
        return child


@dataclass(frozen=True, slots=True)
class Block:
    """A whole block of the decoder, which can be left out.

    Attributes:
        site: Of kind ``block``, with one unit and a floor of 0.
        module: The block; what it returns is its input plus something.
        stack: The stack that it belongs to.
        config: The configuration of the decoder, whose fields number the blocks.
    """

    site: Site
    module: nn.Module
    stack: nn.ModuleList
    config: object


@dataclass(frozen=True, slots=True)
class Refusal:
    """A place that cannot be cut, and why.

    Attributes:
        place: Its site id, or the path of a module.
        reason: As a clause, such as ``a norm over all heads``.
    """

    place: str
    reason: str
