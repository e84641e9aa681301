"""Give a pruned model one width a tower, so that stock classes load it without any code.

Where the configuration of a model has a field for a width (``intermediate_size``,
``num_key_value_heads`` ...), every block is padded with zeros to the widest of its tower; where it
has none (the heads of a CLIP tower, whose number follows from their size), to the width that the
dense model had. Padding changes no logit: a unit that is all zero adds nothing.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from effllava_optuna.policy import Kind
from effllava_optuna.surgery.discover import LANGUAGE, VISION, discover
from effllava_optuna.surgery.handle import Refusal
from effllava_optuna.surgery.reload import stock_class

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from effllava_optuna.surgery.handle import Handle
    from effllava_optuna.surgery.loaded import Loaded

_HEADS = ("num_attention_heads", "num_heads", "attention_heads")


def portable(pruned: Loaded) -> Loaded:
    """Pad a copy of ``pruned`` to sizes that a stock configuration can say."""
    model: Any = copy.deepcopy(pruned.model)
    model.__class__ = stock_class(model)
    for handles in _groups(discover(model).handles).values():
        width = max(handle.site.width for handle in handles)
        places = _places(model, handles)
        if not _says(model.config, type(model), places, width * handles[0].columns):
            fields = _telling(model, handles[0], places, width)
            if fields:
                _change(model.config, handles[0], fields)
            else:
                stock = _columns(model.config, type(model))
                width = max(stock[place] for place in places) // handles[0].columns
        for handle in handles:
            _pad(handle, width)
    parts = discover(model).only(pruned.towers, depth=pruned.depth)
    return replace(pruned, model=model, parts=parts)


def sayable(loaded: Loaded) -> Loaded:
    """Keep only the sites whose width a stock configuration can say, and whole blocks."""
    model, refused = loaded.model, []
    for handles in _groups(loaded.handles).values():
        width = max(handles[0].site.width // 2, 1)
        if not _telling(model, handles[0], _places(model, handles), width):
            refused += [
                Refusal(handle.site.id, "a width that no field of the configuration can say")
                for handle in handles
            ]
    return replace(loaded, parts=loaded.parts.without(refused))


def _groups(handles: Iterable[Handle]) -> dict[tuple[object, ...], list[Handle]]:
    """Put together what a configuration speaks of in one field, and whose units are alike."""
    groups: dict[tuple[object, ...], list[Handle]] = defaultdict(list)
    for handle in handles:
        site = handle.site
        groups[site.tower, site.kind, handle.columns, *handle.inputs].append(handle)
    return groups


def _places(model: nn.Module, handles: Sequence[Handle]) -> list[str]:
    paths = {id(module): path for path, module in model.named_modules()}
    return [f"{paths[id(handle.module)]}.{handle.output}" for handle in handles]


def _telling(
    model: Any, handle: Handle, places: Sequence[str], width: int
) -> Mapping[str, float] | None:
    """Find fields of the configuration that say that ``places`` have ``width`` units."""
    for fields in _fields(model.config, handle, width):
        changed = copy.deepcopy(model.config)
        try:
            _change(changed, handle, fields)
            if _says(changed, stock_class(model), places, width * handle.columns):
                return fields
        except Exception:  # whatever a configuration, or a model, raises at sizes it cannot have
            continue
    return None


def _part(config: Any, tower: str) -> Any:
    """Give the part of a configuration that speaks of a tower; None: none does."""
    if tower == LANGUAGE:
        return config.get_text_config()
    return getattr(config, "vision_config", None) if tower == VISION else None


def _fields(config: Any, handle: Handle, width: int) -> Iterator[dict[str, float]]:
    """Give fields that could say that sites like ``handle`` have ``width`` units."""
    part = _part(config, handle.site.tower)
    if part is None:
        return
    if handle.site.kind is Kind.MLP:
        for name in ("intermediate_size", "ffn_dim"):
            if hasattr(part, name):
                yield {name: width}
        if hasattr(part, "mlp_ratio"):
            yield {"mlp_ratio": width / handle.linear(handle.output).out_features}
        return
    size = getattr(handle.module, "head_dim", None)
    if not isinstance(size, int):
        return
    heads = {name: width * handle.columns // size for name in _HEADS if getattr(part, name, None)}
    groups = 1 if "num_key_value_groups" in handle.counts else width
    yield {**heads, "num_key_value_heads": groups, "head_dim": size}


def _change(config: Any, handle: Handle, fields: Mapping[str, float]) -> None:
    part = _part(config, handle.site.tower)
    for name, value in fields.items():
        if hasattr(part, name):
            setattr(part, name, value)


def _says(config: Any, stock: Any, places: Sequence[str], columns: int) -> bool:
    """Tell whether a configuration stands for a model with so many columns in each place."""
    found = _columns(config, stock)
    return all(found.get(place) == columns for place in places)


def _columns(config: Any, stock: Any) -> dict[str, int]:
    with torch.device("meta"):
        model = stock(copy.deepcopy(config))
    return {
        path: module.in_features
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def _pad(handle: Handle, width: int) -> None:
    """Add units that are all zero."""
    kept = handle.site.width
    if width == kept:
        return
    for name, rows in handle.inputs.items():
        linear = handle.linear(name)
        where = rows.index(torch.arange(kept), width)
        linear.weight = _grown(linear.weight, (rows.each * width, linear.in_features), where)
        if linear.bias is not None:
            linear.bias = _grown(linear.bias, (rows.each * width,), where)
        linear.out_features = rows.each * width
    output = handle.linear(handle.output)
    wide = output.weight.new_zeros(output.out_features, handle.columns * width)
    wide[:, : handle.columns * kept] = output.weight
    output.weight = nn.Parameter(wide, requires_grad=False)
    output.in_features = handle.columns * width
    for name, each in handle.counts.items():
        setattr(handle.module, name, each * width)


def _grown(old: torch.Tensor, shape: tuple[int, ...], rows: torch.Tensor) -> nn.Parameter:
    new = old.new_zeros(shape)
    new[rows.to(old.device)] = old
    return nn.Parameter(new, requires_grad=False)
