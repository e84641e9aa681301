"""Leave out whole blocks, and renumber what counts them.

A cache, a mask and a configuration know blocks by number: a block that is taken out without
renumbering the rest gives wrong tokens in silence. Fields that hold one entry a block lose an
entry; fields that hold numbers of blocks are counted anew. A block whose absence they cannot say
(one sparse block in two, say) stays: a checkpoint without it would be read as another model.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from effllava_optuna.surgery.handle import Refusal
from effllava_optuna.surgery.reload import stock_class

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from effllava_optuna.surgery.handle import Block

_PER_BLOCK = ("layer_types", "mlp_layer_types", "no_rope_layers")
_NUMBERS = ("cross_attention_layers", "mlp_only_layers", "moe_layers")
_FIRST = ("first_k_dense_replace", "num_dense_layers")


def protected(model: nn.Module, blocks: Iterator[Block]) -> tuple[list[Block], list[Refusal]]:
    """Tell the blocks that may be left out from those that others rely on."""
    every = list(blocks)
    kept, refused = [], []
    for block in every:
        reason = _needed(model, block, len(every))
        if reason:
            refused.append(Refusal(block.site.id, reason))
        else:
            kept.append(block)
    return kept, refused


def _needed(model: nn.Module, block: Block, depth: int) -> str:
    config: Any = block.config
    layer = block.site.layer
    if layer == 0:
        return "a cache that counts tokens there"
    vision = getattr(getattr(model, "config", None), "vision_config", None)
    injected = getattr(vision, "deepstack_visual_indexes", None) or ()
    if layer < len(injected):
        return "features of the vision tower added behind it (deepstack)"
    kinds = getattr(config, "layer_types", None) or ()
    mixed = len(set(kinds)) > 1 or bool(getattr(config, "cross_attention_layers", None))
    if mixed and layer == depth - 1:
        return "a kind that the last block must have"
    return ""


def unsaid(model: Any, blocks: Sequence[Block]) -> list[Refusal]:
    """Refuse the blocks without which the configuration describes others than those that stay."""
    if not blocks:
        return []
    decoder, stack, config = model.get_decoder(), blocks[0].stack, blocks[0].config
    if len({_kinds(block) for block in stack}) == 1:
        return []
    path = next(path for path, module in decoder.named_modules() if module is stack)
    every = range(len(stack))
    dense = _described(decoder, path, config, every)
    refused = []
    for block in blocks:
        stay = [layer for layer in every if layer != block.site.layer]
        if dense and _described(decoder, path, config, stay) != [dense[old] for old in stay]:
            reason = "a place that the configuration gives to a block of another kind"
            refused.append(Refusal(block.site.id, reason))
    return refused


def _described(decoder: Any, path: str, config: Any, stay: Sequence[int]) -> list[object]:
    """Give the kinds of block that a configuration stands for; nothing: it cannot be built."""
    changed = copy.deepcopy(config)
    for name, value in _renumbered(config, stay).items():
        setattr(changed, name, value)
    try:
        with torch.device("meta"):
            described = stock_class(decoder)(changed).get_submodule(path)
            return [_kinds(block) for block in described]
    except Exception:  # whatever a configuration, or a model, raises at what it cannot have
        return []


def _kinds(block: nn.Module) -> tuple[tuple[str, type], ...]:
    return tuple((name, type(module)) for name, module in block.named_modules())


def dead_blocks(model: nn.Module, stack: nn.ModuleList) -> int:
    """Count the last blocks of a vision tower whose output nothing reads (LLaVA reads -2)."""
    config: Any = getattr(model, "config", None)
    read: Any = getattr(config, "vision_feature_layer", None)
    vision: Any = getattr(config, "vision_config", None)
    if read is None or getattr(vision, "num_hidden_layers", None) != len(stack):
        return 0
    # Number 0 is what goes into the first block, -1 what comes out of the last.
    last = max(layer if layer >= 0 else len(stack) + 1 + layer for layer in _listed(read))
    return len(stack) - last


def trim(model: Any) -> None:
    """Remove the blocks of a vision tower that nothing reads, for good."""
    inside = {id(module) for module in model.get_decoder().modules()}
    stacks = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and id(module) not in inside
    ]
    stack = max(stacks, key=lambda stack: dead_blocks(model, stack), default=nn.ModuleList())
    dead = dead_blocks(model, stack)
    if not dead:
        return
    config = model.config
    del stack[len(stack) - dead :]
    config.vision_config.num_hidden_layers -= dead
    read = config.vision_feature_layer
    layers = [layer + dead if layer < 0 else layer for layer in _listed(read)]
    config.vision_feature_layer = layers[0] if isinstance(read, int) else layers


def _listed(read: int | Sequence[int]) -> list[int]:
    return [read] if isinstance(read, int) else list(read)


@contextmanager
def dropped(blocks: Sequence[Block]) -> Iterator[None]:
    """Take ``blocks`` out of their stack, for as long as the ``with`` lasts."""
    if not blocks:
        yield
        return
    stack, config = blocks[0].stack, blocks[0].config
    gone = {id(block.module) for block in blocks}
    before = list(stack)
    stay = [layer for layer, block in enumerate(before) if id(block) not in gone]
    with _setting(config, _renumbered(config, stay)):
        try:
            _refill(stack, [before[layer] for layer in stay])
            yield
        finally:
            _refill(stack, before)


def _refill(stack: nn.ModuleList, blocks: Sequence[nn.Module]) -> None:
    """Fill a stack with ``blocks``, and number them from 0."""
    stack._modules.clear()
    for layer, block in enumerate(blocks):
        stack._modules[str(layer)] = block
        numbered: list[Any] = [m for m in block.modules() if hasattr(m, "layer_idx")]
        for module in numbered:
            module.layer_idx = layer


def _renumbered(config: Any, stay: Sequence[int]) -> dict[str, Any]:
    """Give the fields of a configuration that change when only the blocks ``stay`` do."""
    changes: dict[str, Any] = {"num_hidden_layers": len(stay)}
    for name in _PER_BLOCK:
        values = getattr(config, name, None)
        if values:
            changes[name] = [values[layer] for layer in stay]
    for name in _NUMBERS:
        values = getattr(config, name, None)
        if values:
            changes[name] = [new for new, old in enumerate(stay) if old in values]
    for name in _FIRST:
        count = getattr(config, name, None)
        if count:
            changes[name] = sum(old < count for old in stay)
    # By number, what a block has of its own (gemma4).
    if getattr(config, "is_heterogeneous", False):
        own = {int(old): more for old, more in config.to_dict()["per_layer_config"].items()}
        changes["per_layer_config"] = {new: own[old] for new, old in enumerate(stay) if old in own}
    return changes


@contextmanager
def _setting(config: Any, changes: Mapping[str, Any]) -> Iterator[None]:
    before = dict(vars(config))
    try:
        for name, value in changes.items():
            setattr(config, name, value)
        yield
    finally:
        vars(config).clear()
        vars(config).update(before)
