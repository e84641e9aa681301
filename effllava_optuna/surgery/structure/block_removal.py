"""Remove whole blocks, and renumber what refers to blocks by number.

A cache, a mask and a configuration refer to blocks by number: if a block is removed without
renumbering the others, the model silently generates wrong tokens. Configuration fields with one
entry per block lose an entry; fields that list or count blocks are recomputed. A block stays if
the configuration cannot describe the model without it (as with one sparse block in two), or if a
later block computes something else under another number (DiffLlama, transformers issue 30508):
the checkpoint would be read as another model.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from effllava_optuna.surgery.structure.prunable_parts import UnprunablePart
from effllava_optuna.surgery.structure.pruned_class import stock_class

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from effllava_optuna.surgery.structure.component_handle import BlockHandle

_ENTRY_PER_BLOCK = ("layer_types", "mlp_layer_types", "no_rope_layers")
_BLOCK_NUMBERS = ("cross_attention_layers", "mlp_only_layers", "moe_layers")
_FIRST_BLOCKS = ("first_k_dense_replace", "num_dense_layers")
_SETTING_TYPES = (int, float, bool, str, type(None), FunctionType)
_NO_SETTINGS = ("layer_idx", "training", "_is_hf_initialized")

_Function: TypeAlias = "tuple[tuple[str, type, tuple[tuple[str, object], ...]], ...]"


def split_removable(
    model: nn.Module, blocks: Sequence[BlockHandle]
) -> tuple[list[BlockHandle], list[UnprunablePart]]:
    """Separate the blocks that can be removed from those that the model relies on."""
    removable, unprunable = [], []
    for block in blocks:
        reason = _why_needed(model, block, len(blocks))
        if reason:
            unprunable.append(UnprunablePart(block.component.id, reason))
        else:
            removable.append(block)
    return removable, unprunable


def _why_needed(model: nn.Module, block: BlockHandle, depth: int) -> str:
    """Return why the model relies on ``block``; empty if it does not."""
    config: Any = block.config
    layer = block.component.layer
    if layer == 0:
        return (
            "the cache counts positions in the first block; its heads and channels can be pruned"
        )
    vision = getattr(getattr(model, "config", None), "vision_config", None)
    deepstack = getattr(vision, "deepstack_visual_indexes", None) or ()
    if layer < len(deepstack):
        return "features of the vision tower added to its output (deepstack)"
    kinds = getattr(config, "layer_types", None) or ()
    mixed = len(set(kinds)) > 1 or bool(getattr(config, "cross_attention_layers", None))
    if mixed and layer == depth - 1:
        return "a kind that the last block must have"
    return ""


def find_undescribable(model: Any, blocks: Sequence[BlockHandle]) -> list[UnprunablePart]:
    """Find the blocks without which the configuration describes another stack of blocks."""
    if not blocks:
        return []
    decoder, stack, config = model.get_decoder(), blocks[0].stack, blocks[0].config
    if len({_function_of(block) for block in stack}) == 1:
        return []
    path = next(path for path, module in decoder.named_modules() if module is stack)
    all_layers = range(len(stack))
    dense = _described_blocks(decoder, path, config, all_layers)
    unprunable = []
    for block in blocks:
        kept = [layer for layer in all_layers if layer != block.component.layer]
        described = _described_blocks(decoder, path, config, kept)
        reason = _why_undescribable([dense[layer] for layer in kept] if dense else [], described)
        if reason:
            unprunable.append(UnprunablePart(block.component.id, reason))
    return unprunable


def _why_undescribable(kept: Sequence[_Function], described: Sequence[_Function]) -> str:
    """Return why blocks are not those that are described; empty if they are."""
    if not kept or len(kept) != len(described):
        return "a stack that the configuration does not describe without it"
    for block, other in zip(kept, described, strict=True):
        if [module[:2] for module in block] != [module[:2] for module in other]:
            return "a place that the configuration gives to a block of another kind"
        for (*_, settings), (*_, described_settings) in zip(block, other, strict=True):
            if settings != described_settings:
                name = min(name for name, _ in set(settings) ^ set(described_settings))
                return f"a later block that depends on its number ({name})"
    return ""


def _described_blocks(
    decoder: Any, path: str, config: Any, kept: Sequence[int]
) -> list[_Function]:
    """Return what each block computes that a configuration of the blocks ``kept`` describes.

    Empty if no model can be built from it.
    """
    changed = copy.deepcopy(config)
    for name, value in _renumbered_fields(config, kept).items():
        setattr(changed, name, value)
    try:
        with torch.device("meta"):
            described = stock_class(decoder)(changed).get_submodule(path)
            return [_function_of(block) for block in described]
    except Exception:  # configurations and models raise anything for values they do not support
        return []


def _function_of(block: nn.Module) -> _Function:
    """Return what a block computes, but for its weights: path, type, settings of each module."""
    return tuple(
        (name, type(module), module_settings(module)) for name, module in block.named_modules()
    )


def module_settings(module: nn.Module) -> tuple[tuple[str, object], ...]:
    """Return the plain attributes of a module, by name, without its number."""
    return tuple(
        (name, value)
        for name, value in sorted(vars(module).items())
        if type(value) in _SETTING_TYPES and name not in _NO_SETTINGS
    )


@contextmanager
def blocks_removed(blocks: Sequence[BlockHandle]) -> Iterator[None]:
    """Take ``blocks`` out of their stack for the duration of the ``with``."""
    if not blocks:
        yield
        return
    stack, config = blocks[0].stack, blocks[0].config
    removed = {id(block.module) for block in blocks}
    all_blocks = list(stack)
    kept = [layer for layer, block in enumerate(all_blocks) if id(block) not in removed]
    with _fields_set(config, _renumbered_fields(config, kept)):
        try:
            _refill(stack, [all_blocks[layer] for layer in kept])
            yield
        finally:
            _refill(stack, all_blocks)


def _refill(stack: nn.ModuleList, blocks: Sequence[nn.Module]) -> None:
    """Replace the content of a stack by ``blocks``, and number them from 0."""
    stack._modules.clear()
    for layer, block in enumerate(blocks):
        stack._modules[str(layer)] = block
        numbered: list[Any] = [m for m in block.modules() if hasattr(m, "layer_idx")]
        for module in numbered:
            module.layer_idx = layer


def _renumbered_fields(config: Any, kept: Sequence[int]) -> dict[str, Any]:
    """Return the configuration fields that change if only the blocks ``kept`` remain."""
    changes: dict[str, Any] = {"num_hidden_layers": len(kept)}
    for name in _ENTRY_PER_BLOCK:
        values = getattr(config, name, None)
        if values:
            changes[name] = [values[layer] for layer in kept]
    for name in _BLOCK_NUMBERS:
        values = getattr(config, name, None)
        if values:
            changes[name] = [new for new, old in enumerate(kept) if old in values]
    for name in _FIRST_BLOCKS:
        count = getattr(config, name, None)
        if count:
            changes[name] = sum(old < count for old in kept)
    # Settings of single blocks, by number (gemma4).
    if getattr(config, "is_heterogeneous", False):
        per_layer = {
            int(layer): values for layer, values in config.to_dict()["per_layer_config"].items()
        }
        changes["per_layer_config"] = {
            new: per_layer[old] for new, old in enumerate(kept) if old in per_layer
        }
    return changes


@contextmanager
def _fields_set(config: Any, values: Mapping[str, Any]) -> Iterator[None]:
    before = dict(vars(config))
    try:
        for name, value in values.items():
            setattr(config, name, value)
        yield
    finally:
        vars(config).clear()
        vars(config).update(before)
