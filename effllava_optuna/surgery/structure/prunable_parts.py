"""The parts of a model that can be pruned, and those that cannot with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from effllava_optuna.policy import IMAGE_TOKENS, Kind, ModelStructure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.surgery.structure.component_handle import BlockHandle, ComponentHandle
    from effllava_optuna.surgery.visual_tokens.token_reduction import TokenChoice

LANGUAGE, VISION, PROJECTOR = "language", "vision", "projector"


@dataclass(frozen=True, slots=True)
class UnprunablePart:
    """A part of a model that cannot be pruned, and the reason.

    Attributes:
        id: Its component id, or the id of its block, such as ``vision.02``.
        reason: A noun phrase that can follow "has", such as ``a norm over all heads``.
    """

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class PrunableParts:
    """The result of the inspection of a model.

    Attributes:
        handles: Attention and MLP components, in the order of a forward pass.
        blocks: Blocks of the decoder that can be removed whole.
        unprunable: Attention, MLPs and blocks that cannot be pruned.
        tokens: The image tokens that a policy may keep; None: all are read.
    """

    handles: tuple[ComponentHandle, ...]
    blocks: tuple[BlockHandle, ...]
    unprunable: tuple[UnprunablePart, ...]
    tokens: TokenChoice | None = None

    @property
    def structure(self) -> ModelStructure:
        """Return the components in forward order; a block follows its attention and MLP.

        Image tokens are the first one of their tower, or of the model.
        """
        components = [] if self.tokens is None else [IMAGE_TOKENS]
        components += [handle.component for handle in self.handles]
        components += [block.component for block in self.blocks]
        # In order of first appearance: the decoder comes last.
        towers = list(dict.fromkeys(component.tower for component in components))
        kinds = list(Kind)
        components.sort(key=lambda c: (towers.index(c.tower), c.layer, kinds.index(c.kind)))
        return ModelStructure(tuple(components))

    @property
    def towers(self) -> tuple[str, ...]:
        """Return the towers that have attention or MLPs to prune, in forward order."""
        return tuple(dict.fromkeys(handle.component.tower for handle in self.handles))

    def select(self, towers: Sequence[str], *, depth: bool) -> PrunableParts:
        """Return the parts of some towers; whole blocks only with ``depth``."""
        return PrunableParts(
            tuple(handle for handle in self.handles if handle.component.tower in towers),
            tuple(block for block in self.blocks if depth and block.component.tower in towers),
            tuple(
                part
                for part in self.unprunable
                if part.id.partition(".")[0] in towers
                and (depth or not part.id.endswith(Kind.BLOCK))
            ),
            self.tokens,
        )

    def excluding(self, parts: Sequence[UnprunablePart]) -> PrunableParts:
        """Move the components of ``parts`` to the unprunable ones."""
        excluded = {part.id for part in parts}
        return PrunableParts(
            tuple(handle for handle in self.handles if handle.component.id not in excluded),
            tuple(block for block in self.blocks if block.component.id not in excluded),
            self.unprunable + tuple(parts),
            self.tokens,
        )
