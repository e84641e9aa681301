"""Fit the widths of a pruned model to what a stock configuration can express.

If the configuration has a field for a width (``intermediate_size``, ``num_key_value_heads`` ...),
every component is padded with zeros to the widest of its tower and kind. If it has none (the
number of heads of a CLIP tower follows from their size), it is padded to the width of the dense
model. Padding changes no logit: a unit of zeros adds nothing.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from effllava_optuna.policy import Kind
from effllava_optuna.surgery.structure.inspection import inspect_model
from effllava_optuna.surgery.structure.prunable_parts import LANGUAGE, VISION, UnprunablePart
from effllava_optuna.surgery.structure.pruned_class import stock_class
from effllava_optuna.surgery.structure.unread_blocks import remove_unread_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from effllava_optuna.surgery.structure.component_handle import ComponentHandle
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

_HEADS = ("num_attention_heads", "num_heads", "attention_heads")


def pad_to_stock_sizes(pruned: LoadedModel) -> LoadedModel:
    """Return a padded copy of ``pruned`` that stock classes load from its configuration."""
    model: Any = copy.deepcopy(pruned.model)
    model.__class__ = stock_class(model)
    for handles in _group_by_field(inspect_model(model).handles).values():
        width = max(handle.component.width for handle in handles)
        paths = _output_paths(model, handles)
        if not _expresses(model.config, type(model), paths, width * handles[0].columns):
            fields = _fields_for_width(model, handles[0], paths, width)
            if fields:
                _set_fields(model.config, handles[0], fields)
            else:
                dense_columns = _linear_columns(model.config, type(model))
                width = max(dense_columns[path] for path in paths) // handles[0].columns
        for handle in handles:
            _pad(handle, width)
    parts = inspect_model(model).select(pruned.towers, depth=pruned.depth)
    return replace(pruned, model=model, parts=parts)


def restrict_to_stock_sizes(loaded: LoadedModel) -> LoadedModel:
    """Keep only components whose width a stock configuration can express, and whole blocks."""
    model = loaded.model
    excluded: list[UnprunablePart] = []
    for handles in _group_by_field(loaded.handles).values():
        half = max(handles[0].component.width // 2, 1)
        if not _fields_for_width(model, handles[0], _output_paths(model, handles), half):
            reason = "a width that no field of the configuration can express"
            excluded += [UnprunablePart(handle.component.id, reason) for handle in handles]
    return replace(loaded, parts=loaded.parts.excluding(excluded))


def _group_by_field(
    handles: Iterable[ComponentHandle],
) -> dict[tuple[object, ...], list[ComponentHandle]]:
    """Group components whose width is one field of the configuration, with units of one shape."""
    groups: dict[tuple[object, ...], list[ComponentHandle]] = defaultdict(list)
    for handle in handles:
        component = handle.component
        groups[component.tower, component.kind, handle.columns, *handle.inputs].append(handle)
    return groups


def _output_paths(model: nn.Module, handles: Sequence[ComponentHandle]) -> list[str]:
    paths = {id(module): path for path, module in model.named_modules()}
    return [f"{paths[id(handle.module)]}.{handle.output}" for handle in handles]


def _fields_for_width(
    model: Any, handle: ComponentHandle, paths: Sequence[str], width: int
) -> Mapping[str, float] | None:
    """Return fields of the configuration that give the layers at ``paths`` ``width`` units.

    They change nothing that is not pruned: in Jamba, one field sizes MLPs and experts.
    """
    stock = stock_class(model)
    for fields in _candidate_fields(model.config, handle, width):
        config = copy.deepcopy(model.config)
        try:
            _set_fields(config, handle, fields)
            expressed = _expresses(config, stock, paths, width * handle.columns)
            if expressed and _other_shapes(config, model) == _other_shapes(model.config, model):
                return fields
        except Exception:  # configurations and models raise anything at sizes they cannot have
            continue
    return None


def _tower_config(config: Any, tower: str) -> Any:
    """Return the part of a configuration that describes a tower; None if there is none."""
    if tower == LANGUAGE:
        return config.get_text_config()
    return getattr(config, "vision_config", None) if tower == VISION else None


def _candidate_fields(
    config: Any, handle: ComponentHandle, width: int
) -> Iterator[dict[str, float]]:
    """Yield fields with values that may give components like ``handle`` ``width`` units."""
    tower_config = _tower_config(config, handle.component.tower)
    if tower_config is None:
        return
    if handle.component.kind is Kind.MLP:
        for name in ("intermediate_size", "ffn_dim"):
            if hasattr(tower_config, name):
                yield {name: width}
        if hasattr(tower_config, "mlp_ratio"):
            yield {"mlp_ratio": width / handle.linear(handle.output).out_features}
        return
    head_dim = getattr(handle.module, "head_dim", None)
    if not isinstance(head_dim, int):
        return
    heads = width * handle.columns // head_dim
    head_fields = {name: heads for name in _HEADS if getattr(tower_config, name, None)}
    groups = 1 if "num_key_value_groups" in handle.counts else width
    yield {**head_fields, "num_key_value_heads": groups, "head_dim": head_dim}


def _set_fields(config: Any, handle: ComponentHandle, fields: Mapping[str, float]) -> None:
    tower_config = _tower_config(config, handle.component.tower)
    for name, value in fields.items():
        if hasattr(tower_config, name):
            setattr(tower_config, name, value)


def _expresses(config: Any, stock: Any, paths: Sequence[str], columns: int) -> bool:
    """Return whether the layers at ``paths`` have ``columns`` columns under a configuration."""
    by_path = _linear_columns(config, stock)
    return all(by_path.get(path) == columns for path in paths)


def _other_shapes(config: Any, model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of the parameters that belong to no component, under a configuration."""
    components = {id(handle.module) for handle in inspect_model(model).handles}
    inside = tuple(
        f"{path}." for path, module in model.named_modules() if id(module) in components
    )
    with torch.device("meta"):
        stock = stock_class(model)(copy.deepcopy(config))
    remove_unread_blocks(stock)  # as in an export
    return {
        name: weight.shape
        for name, weight in stock.named_parameters()
        if not name.startswith(inside)
    }


def _linear_columns(config: Any, stock: Any) -> dict[str, int]:
    """Return the columns of the linear layers that class ``stock`` builds from ``config``."""
    with torch.device("meta"):
        model = stock(copy.deepcopy(config))
    return {
        path: module.in_features
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def _pad(handle: ComponentHandle, width: int) -> None:
    """Add units of zeros to a component, up to ``width`` units."""
    kept = handle.component.width
    if width == kept:
        return
    for name, rows in handle.inputs.items():
        linear = handle.linear(name)
        kept_rows = rows.indices(torch.arange(kept), width)
        shape = (rows.per_unit * width, linear.in_features)
        linear.weight = _pad_rows(linear.weight, shape, kept_rows)
        if linear.bias is not None:
            linear.bias = _pad_rows(linear.bias, shape[:1], kept_rows)
        linear.out_features = shape[0]
    output = handle.linear(handle.output)
    padded = output.weight.new_zeros(output.out_features, handle.columns * width)
    padded[:, : handle.columns * kept] = output.weight
    output.weight = nn.Parameter(padded, requires_grad=False)
    output.in_features = handle.columns * width
    for name, each in handle.counts.items():
        setattr(handle.module, name, each * width)


def _pad_rows(values: torch.Tensor, shape: tuple[int, ...], rows: torch.Tensor) -> nn.Parameter:
    """Place ``values`` in the given rows of a tensor of zeros."""
    padded = values.new_zeros(shape)
    padded[rows.to(values.device)] = values
    return nn.Parameter(padded, requires_grad=False)
