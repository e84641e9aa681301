"""Find the prunable parts of a model from its modules, without a list of supported models.

The decoder is what ``get_decoder()`` returns; every other stack of blocks with attention is a
tower; an MLP outside all stacks belongs to the projector. Parameter paths differ between versions
of transformers, so neither this module nor any file that the package writes identifies a
component by its path.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Component, Kind
from effllava_optuna.surgery.structure.block_removal import split_removable
from effllava_optuna.surgery.structure.component_handle import BlockHandle, ComponentHandle
from effllava_optuna.surgery.structure.prunable_parts import (
    LANGUAGE,
    PROJECTOR,
    VISION,
    PrunableParts,
    UnprunablePart,
)
from effllava_optuna.surgery.structure.recognition import (
    UnprunableError,
    attention_handle,
    find_attention,
    find_mlps,
    find_stacks,
    mlp_handle,
)
from effllava_optuna.surgery.structure.unread_blocks import count_unread_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def language_model(model: Any) -> nn.Module:
    """Return the decoder of a model.

    Raises:
        ModelError: The model has none.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if not isinstance(decoder, nn.Module):
        raise ModelError(
            f"{type(model).__name__} has no language decoder.",
            hint="Use a vision-language model, such as a LLaVA checkpoint, or a text decoder.",
        )
    return decoder


def decoder_siblings(model: nn.Module) -> list[nn.Module]:
    """Return the modules beside the decoder that have weights: vision towers, and a connector."""
    decoder = language_model(model)
    parent = next(
        (module for module in model.modules() if decoder in module.children()), nn.Module()
    )
    return [
        child
        for child in parent.children()
        if child is not decoder
        and any(True for _ in child.parameters())
        and child is not getattr(model, "lm_head", None)
    ]


def connector(model: nn.Module) -> nn.Module | None:
    """Return the module between the vision tower and the decoder, or None if it is not unique.

    It is a sibling of the decoder that has weights but no stack of blocks.
    """
    candidates = [
        sibling
        for sibling in decoder_siblings(model)
        if not any(isinstance(inner, nn.ModuleList) for inner in sibling.modules())
    ]
    return candidates[0] if len(candidates) == 1 else None


def projector(model: nn.Module) -> nn.Module:
    """Return the module that maps vision features to the decoder.

    It is the connector, or else the list of all MLPs outside the stacks.

    Raises:
        ModelError: There is neither.
    """
    unique = connector(model)
    if unique is not None:
        return unique
    handles = inspect_model(model).handles
    mlps = [handle.module for handle in handles if handle.component.tower == PROJECTOR]
    if not mlps:
        raise ModelError(
            f"{type(model).__name__} has no module that could be its projector.",
            hint="Set projector.steps = 0 to search without training one.",
        )
    return nn.ModuleList(mlps)


def inspect_model(model: nn.Module) -> PrunableParts:
    """Find all prunable parts of a model, in the order of a forward pass.

    Raises:
        ModelError: There is no decoder, or none of its attention and MLPs can be pruned.
    """
    decoder = language_model(model)
    decoder_modules = {id(module) for module in decoder.modules()}
    stacks = list(find_stacks(model))
    decoder_stacks = [stack for _, stack in stacks if id(stack) in decoder_modules]
    if len(decoder_stacks) != 1:
        raise ModelError(
            f"{type(decoder).__name__} has {len(decoder_stacks)} stacks of blocks with attention.",
            hint="Use a decoder with one stack of blocks whose attention has linear layers.",
        )
    inspection = _Inspection(model, decoder, [stack for _, stack in stacks])
    # Towers run before the decoder, wherever a model keeps them.
    for path, stack in stacks:
        if stack is not decoder_stacks[0]:
            unread = count_unread_blocks(model, stack)
            inspection.add_stack(_tower(path), stack, unread=unread)
    inspection.add_projector()
    inspection.add_stack(LANGUAGE, decoder_stacks[0])
    inspection.add_decoder_blocks(decoder_stacks[0])
    parts = inspection.parts()
    parts = parts.excluding(list(_shared(model, parts)))
    if not any(handle.component.tower == LANGUAGE for handle in parts.handles):
        first = parts.unprunable[0]
        raise ModelError(
            f"{type(decoder).__name__} has nothing to prune: {first.id} has {first.reason}.",
            hint="Use a decoder whose attention heads or MLP channels are in linear layers.",
        )
    return parts


@dataclass
class _Inspection:
    """The parts of a model found so far."""

    model: nn.Module
    decoder: nn.Module
    stacks: Sequence[nn.ModuleList]
    handles: list[ComponentHandle] = field(default_factory=list)
    blocks: list[BlockHandle] = field(default_factory=list)
    unprunable: list[UnprunablePart] = field(default_factory=list)
    layers: Counter[str] = field(default_factory=Counter)  # numbered so far, by tower

    def parts(self) -> PrunableParts:
        return PrunableParts(tuple(self.handles), tuple(self.blocks), tuple(self.unprunable))

    def add_stack(self, tower: str, stack: nn.ModuleList, *, unread: int = 0) -> None:
        """Add the attention and the MLP of each block; the last ``unread`` have no effect."""
        for number, block in enumerate(stack):
            layer = self.layers[tower]
            self.layers[tower] += 1
            if number >= len(stack) - unread:
                reason = "an output that nothing reads (an export omits the block)"
                self.unprunable.append(UnprunablePart(f"{tower}.{layer:02d}", reason))
            else:
                self._add_block(block, tower, layer)

    def _add_block(self, block: nn.Module, tower: str, layer: int) -> None:
        for kind, matches, create in (
            (Kind.ATTN, list(find_attention(block)), attention_handle),
            (Kind.MLP, list(find_mlps(block)), mlp_handle),
        ):
            component_id = f"{tower}.{layer:02d}.{kind}"
            # In a mixture of experts, one MLP may match: one of several experts, or a shared
            # expert beside experts that are stacked in one parameter.
            experts = kind == Kind.MLP and any(map(_is_experts, block.modules()))
            if len(matches) != 1 or experts:
                reason = f"no {_NAMES[kind]} of a known form"
                if matches:
                    several = "experts" if experts else f"{len(matches)} modules"
                    reason = f"{several} that could be its {_NAMES[kind]}"
                self.unprunable.append(UnprunablePart(component_id, reason))
                continue
            try:
                self.handles.append(create(matches[0], tower, layer))
            except UnprunableError as error:
                reason = f"{error} ({type(matches[0].module).__name__})"
                self.unprunable.append(UnprunablePart(component_id, reason))

    def add_projector(self) -> None:
        """Add the MLPs that are in no stack and not in the decoder."""
        inside = {id(module) for part in (self.decoder, *self.stacks) for module in part.modules()}
        layer = 0
        for match in find_mlps(self.model):
            output = match.module.get_submodule(match.output)
            if id(match.module) in inside or id(output) in inside:
                continue
            try:
                self.handles.append(mlp_handle(match, PROJECTOR, layer))
            except UnprunableError as error:
                self.unprunable.append(UnprunablePart(f"{PROJECTOR}.{layer:02d}", str(error)))
            layer += 1

    def add_decoder_blocks(self, stack: nn.ModuleList) -> None:
        """Add the decoder blocks that can be removed whole."""
        unit_params = Counter[int]()
        for handle in self.handles:
            component = handle.component
            if component.tower == LANGUAGE:
                unit_params[component.layer] += component.width * component.unit_params
        config: Any = getattr(self.decoder, "config", None)
        blocks = []
        for layer, block in enumerate(stack):
            # The parameters of the block that belong to none of its units, such as its norms.
            others = sum(weight.numel() for weight in block.parameters()) - unit_params[layer]
            component = Component(
                tower=LANGUAGE, layer=layer, kind=Kind.BLOCK, width=1, unit_params=others, floor=0
            )
            blocks.append(BlockHandle(component, block, stack, config))
        removable, unprunable = split_removable(self.model, blocks)
        self.blocks += removable
        self.unprunable += unprunable


def _shared(model: nn.Module, parts: PrunableParts) -> Iterator[UnprunablePart]:
    """Find components that share weights with another place: each has its own ranking."""
    weights = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    modules = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for handle in parts.handles:
        linears = (handle.linear(name) for name in (*handle.inputs, handle.output))
        if any(weights[id(weight)] > 1 for linear in linears for weight in linear.parameters()):
            yield UnprunablePart(handle.component.id, "weights that another place also uses")
    for block in parts.blocks:
        if modules[id(block.module)] > 1:
            yield UnprunablePart(block.component.id, "a second place in the stack")


def _tower(path: str) -> str:
    return next((name for name in ("audio", "qformer") if name in path), VISION)


_NAMES = {Kind.ATTN: "attention", Kind.MLP: "MLP"}


def _is_experts(module: nn.Module) -> bool:
    """Return whether ``module`` stacks the matrices of several experts in one parameter."""
    weights = module.parameters(recurse=False)
    convolution = hasattr(module, "kernel_size")
    return not convolution and any(weight.dim() > 2 for weight in weights)
