"""Find and remove the last blocks of vision towers whose output nothing reads.

LLaVA reads hidden state -2 of its tower, so the last block has no effect. Several towers may have
one configuration, as the two of Video-LLaVA: all of them lose the block, or none does, since the
configuration has one number of blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from effllava_optuna.surgery.structure.recognition import find_stacks

if TYPE_CHECKING:
    from collections.abc import Sequence

# Other fields that number the blocks of a vision tower (Granite 4 Vision).
_OTHER_READERS = ("deepstack_layer_map", "spatial_vision_layer")


def count_unread_blocks(model: nn.Module, stack: nn.ModuleList) -> int:
    """Count the last blocks of a vision tower whose output nothing reads."""
    config: Any = getattr(model, "config", None)
    read: Any = getattr(config, "vision_feature_layer", None)
    depth = getattr(getattr(config, "vision_config", None), "num_hidden_layers", None)
    if read is None or any(getattr(config, name, None) is not None for name in _OTHER_READERS):
        return 0
    stacks = _vision_stacks(model)
    if not any(stack is other for other in stacks) or any(len(other) != depth for other in stacks):
        return 0
    # Hidden state 0 is the input of the first block, -1 the output of the last.
    last = max(layer if layer >= 0 else len(stack) + 1 + layer for layer in _as_list(read))
    return len(stack) - last


def remove_unread_blocks(model: Any) -> None:
    """Remove the unread blocks from all vision towers, permanently."""
    unread = [(stack, count_unread_blocks(model, stack)) for stack in _vision_stacks(model)]
    unread = [(stack, count) for stack, count in unread if count]
    if not unread:
        return
    count = unread[0][1]  # the same for all: they have one configuration
    for stack, _ in unread:
        del stack[len(stack) - count :]
    config = model.config
    config.vision_config.num_hidden_layers -= count
    read = config.vision_feature_layer
    layers = [layer + count if layer < 0 else layer for layer in _as_list(read)]
    config.vision_feature_layer = layers[0] if isinstance(read, int) else layers


def _vision_stacks(model: Any) -> list[nn.ModuleList]:
    """Return the stacks of the modules that are built from the model's vision configuration."""
    vision = getattr(getattr(model, "config", None), "vision_config", None)
    if vision is None:
        return []
    inside = {
        id(inner)
        for tower in model.modules()
        if type(getattr(tower, "config", None)) is type(vision)
        for inner in tower.modules()
    }
    return [stack for _, stack in find_stacks(model) if id(stack) in inside]


def _as_list(read: int | Sequence[int]) -> list[int]:
    return [read] if isinstance(read, int) else list(read)
