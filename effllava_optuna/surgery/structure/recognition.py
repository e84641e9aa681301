"""Recognise attention and MLP modules by their linear children, and derive their units.

Attention has linear children for queries, keys and values, or a fused one, and for the output;
an MLP has linear children into and out of its hidden channels. Head counts come from the shapes of
the weights, not from the configuration. The result is a hypothesis, which `verify_structure`
tests by running the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from effllava_optuna.policy import Component, Kind
from effllava_optuna.surgery.structure.component_handle import ComponentHandle, UnitRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_QKV = ("q_proj", "k_proj", "v_proj")
_FUSED = ("qkv", "qkv_proj")
_ATTN_OUT = ("o_proj", "out_proj", "projection_layer", "projection", "proj")
_MLP = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("gate_up_proj",), "down_proj"),
    (("fc1",), "fc2"),
    (("linear_fc1",), "linear_fc2"),
    (("linear_1",), "linear_2"),
    (("0",), "2"),
)
_HEADS = ("num_heads", "num_attention_heads")
_GROUPS = ("num_key_value_heads", "num_kv_heads")


class UnprunableError(Exception):
    """A module resembles attention or an MLP, but its units cannot be removed exactly."""


class ModuleMatch(NamedTuple):
    """A recognised module, and the paths of its linear children."""

    module: nn.Module
    inputs: tuple[str, ...]
    output: str

    @property
    def columns(self) -> int:
        """Count the columns of the output matrix."""
        return self.shape(self.output)[1]

    def shape(self, name: str) -> tuple[int, int]:
        """Return the rows and columns of a linear child."""
        rows, columns = self.module.get_parameter(f"{name}.weight").shape
        return rows, columns


def find_attention(block: nn.Module) -> Iterator[ModuleMatch]:
    """Find the attention modules of a block."""
    for module in block.modules():
        outputs = [name for name in _ATTN_OUT if _linear_path(module, name)]
        fused = [name for name in _FUSED if _linear_path(module, name)]
        split = [name for name in _QKV if _linear_path(module, name)]
        if outputs and (fused or "q_proj" in split):
            names = fused[:1] or split
            yield ModuleMatch(
                module,
                tuple(_linear_path(module, name) for name in names),
                _linear_path(module, outputs[0]),
            )


def find_stacks(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Find the outermost lists of blocks with attention, with their paths."""
    inner_modules: set[int] = set()
    for path, module in model.named_modules():
        if (
            isinstance(module, nn.ModuleList)
            and id(module) not in inner_modules
            and any(True for block in module for _ in find_attention(block))
        ):
            inner_modules.update(id(inner) for inner in module.modules())
            yield path, module


def find_mlps(block: nn.Module) -> Iterator[ModuleMatch]:
    """Find the MLPs of a block or any other module, itself included."""
    for module in block.modules():
        for inputs, output in _MLP:
            sequence = inputs == ("0",)
            if sequence and not (isinstance(module, nn.Sequential) and len(module) == 3):
                continue
            names = tuple(_linear_path(module, name) for name in inputs)
            if all(names) and _linear_path(module, output):
                yield ModuleMatch(module, names, _linear_path(module, output))
                break


def attention_handle(match: ModuleMatch, tower: str, layer: int) -> ComponentHandle:
    """Create the handle of an attention module.

    A unit is a key/value head with the query heads that read it, or a single query head if all
    query heads share one key/value head.

    Raises:
        UnprunableError: Heads cannot be removed exactly.
    """
    module, (first, *others), output = match
    head_size, columns = _head_size(match), match.columns
    queries = columns // head_size
    if _is_fused(first):
        groups = (match.shape(first)[0] // head_size - queries) // 2
        parts: dict[str, tuple[int, ...]] = {
            first: (columns, groups * head_size, groups * head_size)
        }
    elif others:
        groups = match.shape(others[0])[0] // head_size
        parts = {name: (match.shape(name)[0],) for name in match.inputs}
    else:
        raise UnprunableError("keys and values of another block")
    faults = _attention_faults(match, parts, head_size, groups)
    if faults:
        raise UnprunableError(" and ".join(faults))
    width = groups
    counts = dict.fromkeys(_GROUPS, 1)
    if others and getattr(_config(module), "num_key_value_heads", 0) == groups == 1:
        # The only key/value head stays, and query heads are the units. If the configuration has
        # more key/value heads, the others of this block have been pruned: the unit is a group.
        width, parts, counts = queries, {first: parts[first]}, {"num_key_value_groups": 1}
    counts |= dict.fromkeys(_HEADS, queries // width)
    counts |= dict.fromkeys(("embed_dim", "all_head_size"), columns // width)
    rows = {
        name: UnitRows(tuple(part_rows // width for part_rows in stacked))
        for name, stacked in parts.items()
    }
    unit_params = _unit_params(match, rows, columns // width)
    return ComponentHandle(
        component=Component(
            tower=tower, layer=layer, kind=Kind.ATTN, width=width, unit_params=unit_params
        ),
        module=module,
        inputs=rows,
        output=output,
        columns=columns // width,
        counts=_present(module, counts, width),
    )


def _attention_faults(
    match: ModuleMatch, parts: Mapping[str, tuple[int, ...]], head_size: int, groups: int
) -> list[str]:
    """Return the reasons why heads cannot be removed exactly."""
    module, (first, *others), _ = match
    columns = match.columns
    queries = columns // head_size
    faults = []
    if not queries or groups < 1 or queries % groups:
        faults.append(f"{queries} query heads for {groups} key/value heads")
    if _is_fused(first):
        fits = sum(parts[first]) == match.shape(first)[0]
    else:
        # With twice the rows, each query head has an output gate of its own (Qwen3-Next).
        allowed = {
            first: (columns, 2 * columns), **dict.fromkeys(others, (groups * head_size,))
        }  # fmt: skip
        fits = all(match.shape(name)[0] in sizes for name, sizes in allowed.items())
    if not fits:
        faults.append("queries or keys of another size than the output matrix")
    if any(
        weight.numel() == queries * head_size > head_size
        for name, child in module.named_children()
        if name.endswith("norm")
        for weight in child.parameters()
    ):
        faults.append("a norm over all heads")
    if any(True for _ in module.parameters(recurse=False)):
        faults.append("weights of its own")
    return faults


def _config(module: Any) -> Any:
    """Return the configuration of a module; if blocks differ (gemma4), that of its own block."""
    config: Any = getattr(module, "config", None)
    layer = getattr(module, "layer_idx", None)
    heterogeneous = layer is not None and getattr(config, "is_heterogeneous", False)
    return config.per_layer_config[layer] if heterogeneous else config


def mlp_handle(match: ModuleMatch, tower: str, layer: int) -> ComponentHandle:
    """Create the handle of an MLP, whose units are its hidden channels.

    Raises:
        UnprunableError: An input matrix does not have one row (fused: two rows) per channel.
    """
    width = match.columns
    rows = {}
    for name in match.inputs:
        parts, remainder = divmod(match.shape(name)[0], width)
        if remainder or parts not in (1, 2) or (parts == 2 and len(match.inputs) > 1):
            raise UnprunableError(f"inputs of another width than {width}")
        rows[name] = UnitRows((1,) * parts)
    unit_params = _unit_params(match, rows, columns=1)
    return ComponentHandle(
        component=Component(
            tower=tower, layer=layer, kind=Kind.MLP, width=width, unit_params=unit_params
        ),
        module=match.module,
        inputs=rows,
        output=match.output,
        columns=1,
        counts=_present(match.module, {"intermediate_size": 1}, width),
    )


def _is_fused(name: str) -> bool:
    return name.partition(".")[0] in _FUSED


def _linear_path(module: nn.Module, name: str) -> str:
    """Return the path of the linear child ``name``, wrapped or not; empty if there is none."""
    child = getattr(module, name, None)
    if _is_linear(child):
        return name
    return f"{name}.linear" if _is_linear(getattr(child, "linear", None)) else ""


def _is_linear(child: object) -> bool:
    """Return whether ``child`` holds its own matrix; under a weight norm it is computed."""
    return isinstance(child, nn.Linear) and "weight" in child._parameters


def _head_size(match: ModuleMatch) -> int:
    size = getattr(match.module, "head_dim", None)
    if isinstance(size, int):
        return size
    for name in _HEADS:
        heads = getattr(match.module, name, None)
        if isinstance(heads, int) and match.columns % heads == 0:
            return match.columns // heads
    raise UnprunableError("no head_dim")


def _unit_params(match: ModuleMatch, rows: Mapping[str, UnitRows], columns: int) -> int:
    """Count the parameters of one unit, which has ``columns`` columns of the output matrix."""
    total = columns * match.shape(match.output)[0]
    for name, unit_rows in rows.items():
        linear = match.module.get_submodule(name)
        total += unit_rows.per_unit * (match.shape(name)[1] + (linear.bias is not None))
    return total


def _present(module: nn.Module, counts: Mapping[str, int], width: int) -> dict[str, int]:
    """Select the attributes that the module has and that are ``width`` times the unit's value."""
    return {
        name: per_unit
        for name, per_unit in counts.items()
        if type(getattr(module, name, None)) is int and getattr(module, name) == per_unit * width
    }
