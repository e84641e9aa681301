"""What a model is made of, as far as pruning is concerned."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, NewType

from effllava_optuna.errors import PolicyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SiteId = NewType("SiteId", str)


class Kind(StrEnum):
    """What the units of a site are."""

    ATTN = "attn"
    MLP = "mlp"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Site:
    """One place of a model that can be narrowed.

    Attributes:
        tower: The stack it belongs to, such as ``language``.
        layer: Index of its block in the stack, from 0.
        kind: ``attn``: a unit is one key/value head with the query heads that read it (or one
            query head where all share one key/value head); ``mlp``: a unit is one hidden
            channel; ``block``: the one unit is a whole block.
        width: Units of the dense model.
        unit_params: Parameters that go with one unit; of a block those that belong to no other
            unit.
        floor: Fewest units that may stay: at least 1, and 0 for a block.
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
    def id(self) -> SiteId:
        """Name the site: ``language.07.mlp``."""
        return SiteId(f"{self.tower}.{self.layer:02d}.{self.kind}")


@dataclass(frozen=True)
class Anatomy:
    """All sites of a model, in the order in which a forward pass meets them.

    Example:
        >>> anatomy = Anatomy((Site("language", 0, Kind.ATTN, 4, 100),))
        >>> anatomy.sites[0].id
        'language.00.attn'
    """

    sites: tuple[Site, ...]

    def __post_init__(self) -> None:
        if not self.sites:
            raise PolicyError(
                "The anatomy has no sites.", hint="Use a model with prunable attention or MLPs."
            )
        if len({site.id for site in self.sites}) < len(self.sites):
            raise PolicyError("The anatomy names a site twice.", hint="Give each block one index.")

    @cached_property
    def digest(self) -> str:
        """Identify the anatomy; it changes with any site."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()[:16]

    @cached_property
    def parameters(self) -> int:
        """Count the parameters of all units of the dense model."""
        return sum(site.width * site.unit_params for site in self.sites)

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """Give the kinds of site that have widths, in order of their first site."""
        return tuple(
            dict.fromkeys(site.kind for site in self.sites if site.kind is not Kind.BLOCK)
        )

    def to_json(self) -> list[dict[str, Any]]:
        """Give the sites as JSON."""
        return [
            {
                "tower": site.tower,
                "layer": site.layer,
                "kind": str(site.kind),
                "width": site.width,
                "unit_params": site.unit_params,
                "floor": site.floor,
            }
            for site in self.sites
        ]

    @staticmethod
    def from_json(sites: Sequence[Mapping[str, Any]]) -> Anatomy:
        """Read what `to_json` gave."""
        return Anatomy(tuple(Site(**{**site, "kind": Kind(site["kind"])}) for site in sites))
