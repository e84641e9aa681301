"""Fit the widths of a pruned model to what a stock configuration can express.

If the configuration has a field for a width (``intermediate_size``, ``num_key_value_heads`` ...),
every component is padded with zeros to the next width of its tower and kind that the field can
have. If it has none (the number of heads of a CLIP tower follows from their size), it is padded to
the width of the dense model. Padding changes no logit: a unit of zeros adds nothing.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from effllava_optuna.policy import Kind
from effllava_optuna.surgery.export.stock_fields import WidthFields, set_fields
from effllava_optuna.surgery.structure.inspection import inspect_model
from effllava_optuna.surgery.structure.prunable_parts import UnprunablePart
from effllava_optuna.surgery.structure.pruned_class import stock_class

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery.structure.component_handle import ComponentHandle
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel


def pad_to_stock_sizes(pruned: LoadedModel) -> LoadedModel:
    """Return a padded copy of ``pruned`` that stock classes load from its configuration.

    Raises:
        ExportError: The configuration does not load with the blocks that are left.
    """
    model: Any = copy.deepcopy(pruned.model)
    model.__class__ = stock_class(model)
    for handles in _group_by_field(inspect_model(model).handles):
        expressible = WidthFields(model, handles)
        dense = [expressible.described_width(handle) for handle in handles]
        widest = max(handle.component.width for handle in handles)
        width = expressible.first(range(widest, max(dense)))
        if width is not None:
            set_fields(model.config, handles[0], expressible.at(width) or {})
        for handle, dense_width in zip(handles, dense, strict=True):
            _pad(handle, width or dense_width)
    parts = inspect_model(model).select(pruned.towers, depth=pruned.depth)
    return replace(pruned, model=model, parts=parts)


def restrict_to_stock_sizes(loaded: LoadedModel) -> LoadedModel:
    """Keep only components whose width a stock configuration can express, and whole blocks."""
    excluded: list[UnprunablePart] = []
    for handles in _group_by_field(loaded.handles):
        component = handles[0].component
        narrower = _nearest_first(component.width // 2, range(component.floor, component.width))
        if not _alike(handles):
            reason = "a width that the configuration gives to components of other sizes, too"
        elif WidthFields(loaded.model, handles).first(narrower) is None:
            reason = "a width that no field of the configuration can express"
        else:
            continue
        excluded += [UnprunablePart(handle.component.id, reason) for handle in handles]
    return replace(loaded, parts=loaded.parts.excluding(excluded))


def nearest_stock_widths(
    loaded: LoadedModel,
    proposed: Mapping[ComponentId, Sequence[int]],
    *,
    multiple_of: int = 1,
) -> dict[ComponentId, tuple[int, ...]]:
    """Replace proposed widths by the nearest ones that a stock configuration can express.

    Args:
        loaded: The model.
        proposed: Widths by component, equal for components that are alike.
        multiple_of: What the widths of MLPs are multiples of.

    Returns:
        Widths by component, ascending; the last is the dense width. Policies with one of them for
        each tower and kind need no padding. Whole blocks keep what is proposed.
    """
    allowed = {component: tuple(widths) for component, widths in proposed.items()}
    for handles in _group_by_field(loaded.handles):
        component = handles[0].component
        step = multiple_of if component.kind is Kind.MLP else 1
        narrower = range(-(-component.floor // step) * step, component.width, step)
        expressible = WidthFields(loaded.model, handles)
        accepted = {component.width}
        for width in proposed[component.id] if _alike(handles) else ():
            nearest = _nearest_first(width, (*narrower, component.width))
            accepted.add(next(w for w in nearest if w in accepted or expressible.at(w)))
        allowed |= {handle.component.id: tuple(sorted(accepted)) for handle in handles}
    return allowed


def _group_by_field(handles: Iterable[ComponentHandle]) -> list[list[ComponentHandle]]:
    """Group components whose width is one field of the configuration, with units of one shape."""
    groups: dict[tuple[object, ...], list[ComponentHandle]] = defaultdict(list)
    for handle in handles:
        component = handle.component
        groups[component.tower, component.kind, handle.columns, *handle.inputs].append(handle)
    return list(groups.values())


def _alike(handles: Sequence[ComponentHandle]) -> bool:
    """Return whether components can share every width, as in the space of a search."""
    components = [handle.component for handle in handles]
    return len({(c.width, c.floor, c.unit_params) for c in components}) == 1


def _nearest_first(goal: int, widths: Iterable[int]) -> list[int]:
    """Sort widths by their distance from ``goal``; of two, the smaller one comes first."""
    return sorted(widths, key=lambda width: (abs(width - goal), width))


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
