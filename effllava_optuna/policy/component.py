"""A part of a model that can be pruned."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from effllava_optuna.errors import PolicyError

ComponentId = NewType("ComponentId", str)


class Kind(StrEnum):
    """What the units of a component are."""

    ATTN = "attn"
    MLP = "mlp"
    BLOCK = "block"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a model that can be pruned.

    Attributes:
        tower: The stack of blocks that contains it, such as ``language``.
        layer: Index of its block in the stack, from 0.
        kind: ``attn``: a unit is one key/value head with the query heads that read it (or one
            query head where all share one key/value head); ``mlp``: a unit is one hidden
            channel; ``block``: the only unit is the whole block; ``tokens``: a unit is one
            percent of the image tokens of a picture.
        width: Number of units in the dense model.
        unit_params: Parameters of one unit; for a block, those that belong to no other unit; for
            image tokens none.
        floor: Smallest number of units that may be kept: at least 1, or 0 for a block.
    """

    tower: str
    layer: int
    kind: Kind
    width: int
    unit_params: int
    floor: int = 1

    def __post_init__(self) -> None:
        lowest = 0 if self.kind is Kind.BLOCK else 1
        if not lowest <= self.floor <= self.width:
            raise PolicyError(
                f"{self.id} has floor {self.floor} and width {self.width}.",
                hint=f"Use a floor from {lowest} up to the width.",
            )

    @property
    def id(self) -> ComponentId:
        """Return the name of the component, such as ``language.07.mlp``."""
        return ComponentId(f"{self.tower}.{self.layer:02d}.{self.kind}")


IMAGE_TOKENS = Component("vision", 0, Kind.TOKENS, width=100, unit_params=0)
"""The image tokens that the decoder reads, as a component of the model."""

UNRANKED = (Kind.BLOCK, Kind.TOKENS)
"""Kinds of components that have no widths of matrices: their units are not ranked."""
