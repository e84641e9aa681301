"""Find what can be cut by looking at structure, not at a list of models.

The decoder is what the model itself calls its decoder; every other stack of blocks with attention
is a tower; an MLP that lies in no stack is a projector. Parameter paths differ between versions
of transformers, so that nothing here, or in any file that we write, goes by path.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Anatomy, Kind, Site
from effllava_optuna.surgery.depth import dead_blocks, protected
from effllava_optuna.surgery.handle import Block, Handle, Refusal
from effllava_optuna.surgery.units import (
    UnfitError,
    attention_handle,
    attentions,
    mlp_handle,
    mlps,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LANGUAGE, VISION, PROJECTOR = "language", "vision", "projector"


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a model is made of, as far as it can be cut.

    Attributes:
        handles: Attention and MLP sites, in the order of a forward pass.
        blocks: Whole blocks of the decoder.
        refused: What looks as if it could be cut, but cannot.
    """

    handles: tuple[Handle, ...]
    blocks: tuple[Block, ...]
    refused: tuple[Refusal, ...]

    @property
    def anatomy(self) -> Anatomy:
        """Give the sites in the order of a forward pass; a block follows what is in it."""
        sites = [handle.site for handle in self.handles]
        sites += [block.site for block in self.blocks]
        towers = list(dict.fromkeys(site.tower for site in sites))  # the decoder comes last
        kinds = list(Kind)
        sites.sort(key=lambda s: (towers.index(s.tower), s.layer, kinds.index(s.kind)))
        return Anatomy(tuple(sites))

    @property
    def towers(self) -> tuple[str, ...]:
        """Give the towers that have something to cut, in the order of a forward pass."""
        return tuple(dict.fromkeys(handle.site.tower for handle in self.handles))

    def only(self, towers: Sequence[str], *, depth: bool) -> Discovery:
        """Keep the sites of some towers; with ``depth`` whole blocks, too."""
        return Discovery(
            tuple(handle for handle in self.handles if handle.site.tower in towers),
            tuple(block for block in self.blocks if depth and block.site.tower in towers),
            tuple(
                refusal
                for refusal in self.refused
                if refusal.place.partition(".")[0] in towers
                and (depth or not refusal.place.endswith(Kind.BLOCK))
            ),
        )

    def without(self, refused: Sequence[Refusal]) -> Discovery:
        """Leave out what cannot be cut after all."""
        gone = {refusal.place for refusal in refused}
        return Discovery(
            tuple(handle for handle in self.handles if handle.site.id not in gone),
            tuple(block for block in self.blocks if block.site.id not in gone),
            self.refused + tuple(refused),
        )


def language_model(model: Any) -> nn.Module:
    """Find the decoder of a model.

    Raises:
        ModelError: It has none.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if not isinstance(decoder, nn.Module):
        raise ModelError(
            f"{type(model).__name__} has no language decoder.",
            hint="Use a vision-language model, such as a LLaVA checkpoint, or a text decoder.",
        )
    return decoder


def connector(model: nn.Module) -> nn.Module | None:
    """Find the one part between a vision tower and the decoder that has weights of its own.

    It is a child beside them with weights, but without a stack of blocks.
    """
    decoder = language_model(model)
    body = next(
        (module for module in model.modules() if decoder in module.children()), nn.Module()
    )
    found = [
        child
        for child in body.children()
        if child is not decoder
        and any(True for _ in child.parameters())
        and not any(isinstance(inner, nn.ModuleList) for inner in child.modules())
        and child is not getattr(model, "lm_head", None)
    ]
    return found[0] if len(found) == 1 else None


def projector(model: nn.Module) -> nn.Module:
    """Find what carries vision features to the decoder: the connector, else the MLPs like one.

    Raises:
        ModelError: There is none.
    """
    found = connector(model)
    if found is not None:
        return found
    mlps = [h.module for h in discover(model).handles if h.site.tower == PROJECTOR]
    if not mlps:
        raise ModelError(
            f"{type(model).__name__} has no part that could be its projector.",
            hint="Set projector.steps = 0 to search without training one.",
        )
    return nn.ModuleList(mlps)


def discover(model: nn.Module) -> Discovery:
    """Find everything that can be cut, in the order of a forward pass.

    Raises:
        ModelError: There is no decoder, or nothing of it can be cut.
    """
    decoder = language_model(model)
    inside = {id(module) for module in decoder.modules()}
    stacks = list(_stacks(model))
    found = sum(id(stack) in inside for _, stack in stacks)
    if found != 1:
        raise ModelError(
            f"{type(decoder).__name__} has {found} stacks of blocks with attention.",
            hint="Decoders with one stack, of blocks with attention in linear layers, can be cut.",
        )
    handles: list[Handle] = []
    blocks: list[Block] = []
    refused: list[Refusal] = []
    # Towers come before what they feed, wherever a model keeps them.
    layers: dict[str, int] = {}
    for path, stack in sorted(stacks, key=lambda found: id(found[1]) in inside):
        language = id(stack) in inside
        tower = LANGUAGE if language else _tower(path)
        if language:
            handles += _projectors(model, decoder, [stack for _, stack in stacks], refused)
        dead = 0 if language else dead_blocks(model, stack)
        for number, block in enumerate(stack):
            layer = layers[tower] = layers.get(tower, -1) + 1
            if number >= len(stack) - dead:
                reason = "nothing reads what it gives; an export leaves it out"
                refused.append(Refusal(f"{tower}.{layer:02d}", reason))
                continue
            handles += _in_block(block, tower, layer, refused)
        if language:
            kept, reasons = protected(model, _blocks(decoder, stack, handles))
            blocks += kept
            refused += reasons
    parts = Discovery(tuple(handles), tuple(blocks), tuple(refused))
    parts = parts.without(list(_shared(model, parts)))
    if not any(handle.site.tower == LANGUAGE for handle in parts.handles):
        raise ModelError(
            f"{type(decoder).__name__} has nothing that can be cut: "
            f"{parts.refused[0].place} has {parts.refused[0].reason}.",
            hint="Decoders with attention heads or MLP channels in linear layers can be cut.",
        )
    return parts


def _shared(model: nn.Module, parts: Discovery) -> Iterator[Refusal]:
    """Refuse what other places have a part in: there is one order for each of them."""
    weights = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    modules = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for handle in parts.handles:
        linears = (handle.linear(name) for name in (*handle.inputs, handle.output))
        if any(weights[id(weight)] > 1 for linear in linears for weight in linear.parameters()):
            yield Refusal(handle.site.id, "weights that another place uses, too")
    for block in parts.blocks:
        if modules[id(block.module)] > 1:
            yield Refusal(block.site.id, "a second place in the stack")


def _stacks(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Find the lists of blocks with attention that lie in no other such list."""
    found: set[int] = set()
    for path, module in model.named_modules():
        if (
            isinstance(module, nn.ModuleList)
            and id(module) not in found
            and any(True for block in module for _ in attentions(block))
        ):
            found.update(id(inner) for inner in module.modules())
            yield path, module


def _tower(path: str) -> str:
    return next((name for name in ("audio", "qformer") if name in path), VISION)


def _in_block(
    block: nn.Module, tower: str, layer: int, refused: list[Refusal]
) -> Iterator[Handle]:
    """Find the attention and the MLP of a block; say what else it has."""
    for kind, found, make in (
        (Kind.ATTN, list(attentions(block)), attention_handle),
        (Kind.MLP, list(mlps(block)), mlp_handle),
    ):
        place = f"{tower}.{layer:02d}.{kind}"
        # Of a mixture of experts one MLP may look like ours: several, or one beside stacked ones.
        stacked = kind == Kind.MLP and any(map(_is_experts, block.modules()))
        if len(found) != 1 or stacked:
            many = "experts" if stacked else f"{len(found)} modules"
            reason = f"{many} that could be its {_NAMES[kind]}" if found else _MISSING[kind]
            refused.append(Refusal(place, reason))
            continue
        try:
            yield make(found[0], tower, layer)
        except UnfitError as error:
            refused.append(Refusal(place, f"{error} ({type(found[0].module).__name__})"))


_NAMES = {Kind.ATTN: "attention", Kind.MLP: "MLP"}
_MISSING = {kind: f"no {name} that is understood" for kind, name in _NAMES.items()}


def _is_experts(module: nn.Module) -> bool:
    weights = module.parameters(recurse=False)
    convolution = hasattr(module, "kernel_size")
    return not convolution and any(weight.dim() > 2 for weight in weights)


def _projectors(
    model: nn.Module,
    decoder: nn.Module,
    stacks: Sequence[nn.ModuleList],
    refused: list[Refusal],
) -> Iterator[Handle]:
    """Find the MLPs that lie in no stack and not in the decoder."""
    taken = {id(module) for part in (decoder, *stacks) for module in part.modules()}
    layer = 0
    for found in mlps(model):
        if id(found.module) in taken or id(found.module.get_submodule(found.output)) in taken:
            continue
        try:
            yield mlp_handle(found, PROJECTOR, layer)
        except UnfitError as error:
            refused.append(Refusal(f"{PROJECTOR}.{layer:02d}", str(error)))
        layer += 1


def _blocks(
    decoder: nn.Module, stack: nn.ModuleList, handles: Sequence[Handle]
) -> Iterator[Block]:
    units: dict[int, int] = {}
    for handle in handles:
        if handle.site.tower == LANGUAGE:
            mine = handle.site.width * handle.site.unit_params
            units[handle.site.layer] = units.get(handle.site.layer, 0) + mine
    config: Any = getattr(decoder, "config", None)
    for layer, block in enumerate(stack):
        rest = sum(weight.numel() for weight in block.parameters()) - units.get(layer, 0)
        yield Block(Site(LANGUAGE, layer, Kind.BLOCK, 1, rest, floor=0), block, stack, config)
