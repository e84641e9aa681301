"""Recognise attention and MLP modules by their structure, and say what one unit is there.

Attention has linear children for queries, keys and values, or a fused one, and for the output;
an MLP has linear children in and out of its hidden channels. Head counts come from the shapes of
the weights, not from the configuration. What is said here is a hypothesis: `examined` tests it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from effllava_optuna.policy import Kind, Site
from effllava_optuna.surgery.handle import Handle, Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

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


class UnfitError(Exception):
    """A module looks like attention or an MLP, but cannot lose units exactly."""


class Found(NamedTuple):
    """A recognised module, and the names of its linear children."""

    module: nn.Module
    inputs: tuple[str, ...]
    output: str

    @property
    def columns(self) -> int:
        """Count the columns of the output matrix."""
        return self.rows(self.output)[1]

    def rows(self, name: str) -> tuple[int, int]:
        """Give rows and columns of a linear child."""
        rows, columns = self.module.get_parameter(f"{name}.weight").shape
        return rows, columns


def attentions(block: nn.Module) -> Iterator[Found]:
    """Find the attention modules of a block."""
    for module in block.modules():
        outputs = [name for name in _ATTN_OUT if _linear(module, name)]
        fused = [name for name in _FUSED if _linear(module, name)]
        split = [name for name in _QKV if _linear(module, name)]
        if outputs and (fused or "q_proj" in split):
            names = fused[:1] or split
            yield Found(
                module,
                tuple(_linear(module, name) for name in names),
                _linear(module, outputs[0]),
            )


def mlps(block: nn.Module) -> Iterator[Found]:
    """Find the MLPs of a block, or of any module, itself among them."""
    for module in block.modules():
        for inputs, output in _MLP:
            sequence = inputs == ("0",)
            if sequence and not (isinstance(module, nn.Sequential) and len(module) == 3):
                continue
            names = tuple(_linear(module, name) for name in inputs)
            if all(names) and _linear(module, output):
                yield Found(module, names, _linear(module, output))
                break


def attention_handle(found: Found, tower: str, layer: int) -> Handle:
    """Say what a unit of an attention module is.

    It is a key/value head with the query heads that read it; where all query heads read the one
    key/value head that there is, it is a query head.

    Raises:
        UnfitError: Heads cannot be removed exactly.
    """
    module, (first, *others), output = found
    size, columns = _head_size(found), found.columns
    queries = columns // size
    written = {name: found.rows(name)[0] for name in found.inputs}
    parts: dict[str, tuple[int, ...]]
    if _is_fused(first):
        groups = (written[first] // size - queries) // 2
        parts = {first: (columns, groups * size, groups * size)}
    elif others:
        groups = written[others[0]] // size
        parts = {name: (rows,) for name, rows in written.items()}
    else:
        raise UnfitError("keys and values of another block")
    faults = []
    if not queries or groups < 1 or queries % groups:
        faults.append(f"{queries} query heads for {groups} key/value heads")
    # Twice as many rows as are read: each query head has a gate of its own.
    read = {first: (columns, 2 * columns), **dict.fromkeys(others, (groups * size,))}
    fits = sum(parts[first]) == written[first] if _is_fused(first) else all(
        written[name] in sizes for name, sizes in read.items()
    )  # fmt: skip
    if not fits:
        faults.append("queries or keys of another size than what is read")
    if any(
        weight.numel() == queries * size > size
        for name, child in module.named_children()
        if name.endswith("norm")
        for weight in child.parameters()
    ):
        faults.append("a norm over all heads")
    if any(True for _ in module.parameters(recurse=False)):
        faults.append("weights of its own")
    if faults:
        raise UnfitError(" and ".join(faults))
    width = groups
    counts = dict.fromkeys(_GROUPS, 1)
    config = _config(module)
    if others and getattr(config, "num_key_value_heads", 0) == groups == 1:
        # The one key/value head stays, and query heads may go, down to one. (Where the
        # configuration says that there are more, this block has lost the others.)
        width, parts, counts = queries, {first: parts[first]}, {"num_key_value_groups": 1}
    counts |= dict.fromkeys(_HEADS, queries // width)
    counts |= dict.fromkeys(("embed_dim", "all_head_size"), columns // width)
    rows = {name: Rows(tuple(part // width for part in mine)) for name, mine in parts.items()}
    site = Site(tower, layer, Kind.ATTN, width, _unit_params(found, rows, columns // width))
    return Handle(site, module, rows, output, columns // width, _present(module, counts, width))


def _config(module: Any) -> Any:
    """Give the configuration of a module: where blocks differ (gemma4), that of its own block."""
    config: Any = getattr(module, "config", None)
    layer = getattr(module, "layer_idx", None)
    mixed = layer is not None and getattr(config, "is_heterogeneous", False)
    return config.per_layer_config[layer] if mixed else config


def mlp_handle(found: Found, tower: str, layer: int) -> Handle:
    """Say what a unit of an MLP is: a hidden channel.

    Raises:
        UnfitError: Its inputs have no row, or no two rows, for each channel.
    """
    width = found.columns
    rows = {}
    for name in found.inputs:
        count, rest = divmod(found.rows(name)[0], width)
        if rest or count not in (1, 2) or (count == 2 and len(found.inputs) > 1):
            raise UnfitError(f"inputs of another width than {width}")
        rows[name] = Rows((1,) * count)
    site = Site(tower, layer, Kind.MLP, width, _unit_params(found, rows, 1))
    counts = _present(found.module, {"intermediate_size": 1}, width)
    return Handle(site, found.module, rows, found.output, 1, counts)


def _is_fused(name: str) -> bool:
    return name.partition(".")[0] in _FUSED


def _linear(module: nn.Module, name: str) -> str:
    """Give the path of the linear child called ``name``, be it wrapped or not; else nothing."""
    child = getattr(module, name, None)
    if _is_linear(child):
        return name
    return f"{name}.linear" if _is_linear(getattr(child, "linear", None)) else ""


def _is_linear(child: object) -> bool:
    """Tell whether ``child`` holds its own matrix; that of a weight norm is computed."""
    return isinstance(child, nn.Linear) and "weight" in child._parameters


def _head_size(found: Found) -> int:
    size = getattr(found.module, "head_dim", None)
    if isinstance(size, int):
        return size
    for name in _HEADS:
        heads = getattr(found.module, name, None)
        if isinstance(heads, int) and found.columns % heads == 0:
            return found.columns // heads
    raise UnfitError("no head_dim")


def _unit_params(found: Found, rows: dict[str, Rows], columns: int) -> int:
    total = columns * found.rows(found.output)[0]
    for name, mine in rows.items():
        linear = found.module.get_submodule(name)
        total += mine.each * (found.rows(name)[1] + (linear.bias is not None))
    return total


def _present(module: nn.Module, counts: dict[str, int], width: int) -> dict[str, int]:
    """Leave out the attributes that the module does not have, or that mean something else."""
    return {
        name: each
        for name, each in counts.items()
        if type(getattr(module, name, None)) is int and getattr(module, name) == each * width
    }
