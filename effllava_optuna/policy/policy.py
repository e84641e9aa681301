"""How many units each component of a model keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import PolicyError
from effllava_optuna.policy.component import IMAGE_TOKENS, UNRANKED, ComponentId, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.policy.component import Component
    from effllava_optuna.policy.structure import ModelStructure


@dataclass(frozen=True, slots=True)
class Policy:
    """A pruning policy; create it with `of`, `uniform` or `dense`, which validate it.

    Attributes:
        structure: The structure of the model that the policy prunes.
        widths: Number of units kept by each component, in the order of the structure.

    Example:
        >>> from effllava_optuna.policy import Component, Kind, ModelStructure
        >>> structure = ModelStructure(
        ...     (
        ...         Component("language", 0, Kind.ATTN, 4, 100),
        ...         Component("language", 0, Kind.MLP, 384, 10),
        ...     )
        ... )
        >>> Policy.uniform(structure, ratio=0.5).widths
        (2, 192)
        >>> Policy.uniform(structure, ratio={"attn": 1.0, "mlp": 0.5}).keep_ratio
        0.5471698113207547
    """

    structure: ModelStructure = field(repr=False, hash=False)
    widths: tuple[int, ...]

    @staticmethod
    def of(structure: ModelStructure, widths: Sequence[int] | Mapping[Any, int]) -> Policy:
        """Create a policy from the number of units that each component keeps.

        Args:
            structure: The structure of the model.
            widths: A width for each component in order, or widths by component id; components that
                are not named stay dense.

        Raises:
            PolicyError: A width is missing or out of range, or a component does not exist.
        """
        components = structure.components
        if isinstance(widths, Mapping):
            unknown = set(widths) - {component.id for component in components}
            if unknown:
                raise PolicyError(
                    f"There is no component {min(unknown)!r}.",
                    hint=f"The first component of this model is {components[0].id!r}.",
                )
            widths = [widths.get(component.id, component.width) for component in components]
        if len(widths) != len(components):
            raise PolicyError(
                f"The policy has {len(widths)} widths for {len(components)} components.",
                hint="Give one width for each component, in the order of the model structure.",
            )
        return Policy(
            structure,
            tuple(
                _validated(component, width)
                for component, width in zip(components, widths, strict=True)
            ),
        )

    @staticmethod
    def uniform(structure: ModelStructure, *, ratio: float | Mapping[str, float]) -> Policy:
        """Create a policy with one width ratio for all components, or one for each kind.

        Args:
            structure: The structure of the model.
            ratio: A width ratio in (0, 1], or width ratios by kind (``attn``, ``mlp``). Widths
                are rounded to the nearest unit and never below the floor of a component. Blocks
                are always kept.

        Raises:
            PolicyError: A ratio is outside (0, 1], or a kind is missing.
        """
        ratios = ratio if isinstance(ratio, Mapping) else dict.fromkeys(Kind, ratio)
        widths = []
        for component in structure.components:
            one = 1.0 if component.kind in UNRANKED else ratios.get(component.kind)
            if one is None or not 0 < one <= 1:
                raise PolicyError(
                    f"{component.kind} components cannot have a width ratio of {one}.",
                    hint="Use a number above 0, up to 1.",
                )
            widths.append(max(component.floor, round(one * component.width)))
        return Policy.of(structure, widths)

    @staticmethod
    def dense(structure: ModelStructure) -> Policy:
        """Create the policy that keeps every unit."""
        return Policy(structure, tuple(component.width for component in structure.components))

    @property
    def digest(self) -> str:
        """Return a hash of structure and widths."""
        content = f"{self.structure.digest} {self.widths}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def keep_ratio(self) -> float:
        """Return the share of the prunable parameters that is kept, in (0, 1]."""
        return self.parameters / self.structure.parameters

    @property
    def visual_tokens(self) -> float:
        """Return the share of the image tokens that the decoder reads, in (0, 1]."""
        index = self.structure.tokens
        return 1.0 if index is None else self.widths[index] / IMAGE_TOKENS.width

    def with_all_tokens(self) -> Policy:
        """Return the policy with the same widths, and all image tokens."""
        index = self.structure.tokens
        if index is None:
            return self
        widths = (*self.widths[:index], IMAGE_TOKENS.width, *self.widths[index + 1 :])
        return Policy(self.structure, widths)

    @property
    def parameters(self) -> int:
        """Count the prunable parameters that are kept."""
        active = self.active_widths
        return sum(active[c.id] * c.unit_params for c in self.structure.components)

    @property
    def active_widths(self) -> dict[ComponentId, int]:
        """Return the number of units that run, by component; 0 inside a removed block."""
        pairs = list(zip(self.structure.components, self.widths, strict=True))
        removed = {
            (component.tower, component.layer)
            for component, width in pairs
            if component.kind is Kind.BLOCK and not width
        }
        return {c.id: 0 if (c.tower, c.layer) in removed else width for c, width in pairs}

    def check(self, structure: ModelStructure) -> None:
        """Check that the policy was made for a model of this structure.

        Raises:
            PolicyError: It was made for another one.
        """
        if self.structure is not structure and self.structure.digest != structure.digest:
            raise PolicyError(
                f"The policy belongs to model structure {self.structure.digest}, the model has "
                f"{structure.digest}.",
                hint="Use the model that the policy was made for.",
            )


def _validated(component: Component, width: object) -> int:
    if isinstance(width, bool) or not hasattr(width, "__index__"):
        raise PolicyError(
            f"{component.id} cannot keep {width!r} units.", hint="Use a whole number of units."
        )
    number = int(width.__index__())
    if not component.floor <= number <= component.width:
        raise PolicyError(
            f"{component.id} cannot keep {number} of {component.width} units.",
            hint=f"Use a number from {component.floor} to {component.width}.",
        )
    return number
