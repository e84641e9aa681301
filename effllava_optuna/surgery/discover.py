"""Find what can be narrowed by looking at structure, not at a list of models.

An attention module has linear children for queries, keys, values and output; an MLP has linear
children in and out of its hidden channels. Head counts come from the shapes of the weights, not
from the configuration. Parameter paths differ between versions of transformers, so that nothing
here, or in any file that we write, goes by path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Anatomy, Kind, Site

if TYPE_CHECKING:
    from collections.abc import Mapping

_QKV = ("q_proj", "k_proj", "v_proj")
_ATTN_OUT = ("o_proj", "out_proj")
_MLP = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("fc1",), "fc2"),
)
_HEAD_COUNTS = ("num_heads", "num_attention_heads")
_GROUP_COUNTS = ("num_key_value_heads", "num_kv_heads")


@dataclass(frozen=True, slots=True)
class Handle:
    """Where a site sits in a model, and what one unit is there.

    Attributes:
        site: The site.
        module: The attention or MLP module.
        inputs: Linear children that write the units, with the rows that one unit has.
        output: The linear child that reads the units.
        columns: Columns of ``output`` that one unit has.
        counts: Integer attributes of ``module`` that follow the width, with their value a unit.
    """

    site: Site
    module: nn.Module
    inputs: Mapping[str, int]
    output: str
    columns: int
    counts: Mapping[str, int]

    def linear(self, name: str) -> nn.Linear:
        """Give the linear child called ``name``."""
        child = getattr(self.module, name)
        if not isinstance(child, nn.Linear):
            raise ModelError(f"{self.site.id}: {name} is a {type(child).__name__}, not a Linear.")
        return child


def language_model(model: nn.Module) -> nn.Module:
    """Find the decoder of a vision-language model.

    Raises:
        ModelError: It has none.
    """
    decoder, head = (
        getattr(model, name)() if hasattr(model, name) else None
        for name in ("get_decoder", "get_output_embeddings")
    )
    parts = [part for part in (decoder, head) if isinstance(part, nn.Module)]
    text = {id(weight) for part in parts for weight in part.parameters()}
    # Whatever is neither decoder nor output embeddings belongs to a tower.
    sees = any(id(weight) not in text for weight in model.parameters())
    if not isinstance(decoder, nn.Module) or not sees:
        raise ModelError(
            f"{type(model).__name__} has no language decoder beside a tower.",
            hint="Use a vision-language model, such as a LLaVA checkpoint.",
        )
    return decoder


def projector(model: nn.Module) -> nn.Module:
    """Find the module between the vision tower and the language model.

    It is the one part beside them that has weights, but no stack of blocks.

    Raises:
        ModelError: There is none, or more than one.
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
    if len(found) != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(found)} parts that could be its projector.",
            hint="Models with one projector beside tower and decoder are understood (LLaVA).",
        )
    return found[0]


def discover(model: nn.Module) -> tuple[Handle, ...]:
    """Find the sites of the language tower, in the order of a forward pass.

    Raises:
        ModelError: A block has no attention or no MLP that is understood.
    """
    decoder = language_model(model)
    stacks = [
        module
        for module in decoder.modules()
        if isinstance(module, nn.ModuleList) and any(_attention(block) for block in module)
    ]
    if len(stacks) != 1:
        raise ModelError(
            f"{type(decoder).__name__} has {len(stacks)} stacks of blocks with attention.",
            hint="Decoders with q_proj, k_proj, v_proj and o_proj in one stack are understood.",
        )
    handles: list[Handle] = []
    for layer, block in enumerate(stacks[0]):
        attention, mlp = _attention(block), _mlp(block)
        if attention is None or mlp is None:
            missing = "attention" if attention is None else "MLP"
            raise ModelError(
                f"Block {layer} of {type(decoder).__name__} has no {missing} that is understood.",
                hint="Mixture-of-experts and fused projections cannot be narrowed yet.",
            )
        handles += [_attention_handle(attention, layer), _mlp_handle(*mlp, layer)]
    return tuple(handles)


def anatomy_of(handles: tuple[Handle, ...]) -> Anatomy:
    """Give the anatomy that ``handles`` belong to."""
    return Anatomy(tuple(handle.site for handle in handles))


def _has_linears(module: nn.Module, names: tuple[str, ...]) -> bool:
    return all(isinstance(getattr(module, name, None), nn.Linear) for name in names)


def _attention(block: nn.Module) -> nn.Module | None:
    for module in block.modules():
        if _has_linears(module, _QKV) and any(_has_linears(module, (o,)) for o in _ATTN_OUT):
            return module
    return None


def _mlp(block: nn.Module) -> tuple[nn.Module, tuple[str, ...], str] | None:
    found = [
        (module, inputs, output)
        for module in block.modules()
        for inputs, output in _MLP
        if _has_linears(module, (*inputs, output))
    ]
    # Of a mixture of experts one MLP may look like ours: several, or one beside stacked weights.
    stacked = any(weight.dim() > 2 for weight in block.parameters())
    return found[0] if len(found) == 1 and not stacked else None


def _attention_handle(module: nn.Module, layer: int) -> Handle:
    output = next(name for name in _ATTN_OUT if _has_linears(module, (name,)))
    head_dim = getattr(module, "head_dim", None)
    if not isinstance(head_dim, int):
        raise ModelError(
            f"{type(module).__name__} of block {layer} does not tell its head_dim.",
            hint="Use a transformers version whose attention has it.",
        )
    q, k, v, o = (getattr(module, name) for name in (*_QKV, output))
    queries, groups = q.out_features // head_dim, k.out_features // head_dim
    faults = []
    if not queries or not groups or queries % groups:
        faults.append(f"{queries} query heads for {groups} key/value heads")
    if (q.out_features, k.out_features) != (o.in_features, v.out_features):
        faults.append("queries or keys of another size than what is read (a gate?)")
    if any(
        weight.numel() == queries * head_dim > head_dim
        for name, child in module.named_children()
        if name.endswith("norm")
        for weight in child.parameters()
    ):
        faults.append("a norm over all heads")
    if any(True for _ in module.parameters(recurse=False)):
        faults.append("weights of its own")
    if faults:
        raise ModelError(
            f"{type(module).__name__} of block {layer} cannot lose heads exactly: it has "
            f"{' and '.join(faults)}.",
            hint="Heads must share nothing but the key/value head of their group.",
        )
    rows = queries // groups * head_dim
    inputs = {"q_proj": rows, "k_proj": head_dim, "v_proj": head_dim}
    counts = dict.fromkeys(_HEAD_COUNTS, queries // groups)
    counts |= dict.fromkeys(_GROUP_COUNTS, 1)
    if getattr(module, "embed_dim", None) == queries * head_dim:
        counts["embed_dim"] = rows
    return _handle(module, layer, Kind.ATTN, groups, inputs, output, rows, counts)


def _mlp_handle(module: nn.Module, inputs: tuple[str, ...], output: str, layer: int) -> Handle:
    width = getattr(module, output).in_features
    if any(getattr(module, name).out_features != width for name in inputs):
        raise ModelError(
            f"{type(module).__name__} of block {layer} has inputs of another width than {width}.",
            hint="Every input of an MLP must have one row a hidden channel.",
        )
    return _handle(
        module, layer, Kind.MLP, width, dict.fromkeys(inputs, 1), output, 1,
        {"intermediate_size": 1},
    )  # fmt: skip


def _handle(
    module: nn.Module,
    layer: int,
    kind: Kind,
    width: int,
    inputs: dict[str, int],
    output: str,
    columns: int,
    counts: dict[str, int],
) -> Handle:
    unit_params = columns * getattr(module, output).out_features
    for name, rows in inputs.items():
        linear = getattr(module, name)
        unit_params += rows * (linear.in_features + (linear.bias is not None))
    present = {
        name: each
        for name, each in counts.items()
        if isinstance(getattr(module, name, None), int) and getattr(module, name) == each * width
    }
    site = Site("language", layer, kind, width, unit_params)
    return Handle(site, module, inputs, output, columns, present)
