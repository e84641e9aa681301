"""All components of a model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import PolicyError
from effllava_optuna.policy.component import UNRANKED, Component, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class ModelStructure:
    """All components of a model, in the order of a forward pass.

    Example:
        >>> structure = ModelStructure((Component("language", 0, Kind.ATTN, 4, 100),))
        >>> structure.components[0].id
        'language.00.attn'
    """

    components: tuple[Component, ...]

    def __post_init__(self) -> None:
        if not self.components:
            raise PolicyError(
                "The model structure has no components.",
                hint="Use a model with prunable attention or MLPs.",
            )
        if len({component.id for component in self.components}) < len(self.components):
            raise PolicyError(
                "Two components of the model structure have the same id.",
                hint="Number the blocks of a tower from 0, each once.",
            )

    @cached_property
    def digest(self) -> str:
        """Return a hash of the content."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()[:16]

    @cached_property
    def parameters(self) -> int:
        """Count the prunable parameters of the dense model."""
        return sum(component.width * component.unit_params for component in self.components)

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """Return the kinds of component that have widths, in order of first appearance."""
        return tuple(
            dict.fromkeys(
                component.kind for component in self.components if component.kind not in UNRANKED
            )
        )

    @cached_property
    def tokens(self) -> int | None:
        """Return the position of the image tokens among the components; None: not among them."""
        kinds = [component.kind for component in self.components]
        return kinds.index(Kind.TOKENS) if Kind.TOKENS in kinds else None

    def to_json(self) -> list[dict[str, Any]]:
        """Return the components as JSON."""
        return [asdict(component) | {"kind": str(component.kind)} for component in self.components]

    @staticmethod
    def from_json(components: Sequence[Mapping[str, Any]]) -> ModelStructure:
        """Read what `to_json` returned."""
        return ModelStructure(
            tuple(Component(**{**entry, "kind": Kind(entry["kind"])}) for entry in components)
        )
