"""Find the widths that the fields of a stock configuration can express.

A field expresses a width if the class of the configuration accepts it when a checkpoint is loaded,
and the stock class then builds the same model with components of that width. Both depend on the
family: a LlamaConfig refuses numbers of heads that do not divide the hidden size, a Qwen2Config
has no field for the size of a head, and in Jamba one field sizes MLPs and experts.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.errors import ExportError, describe
from effllava_optuna.policy import Kind
from effllava_optuna.surgery.structure.block_removal import module_settings
from effllava_optuna.surgery.structure.prunable_parts import LANGUAGE, VISION
from effllava_optuna.surgery.structure.pruned_class import stock_class
from effllava_optuna.surgery.structure.unread_blocks import remove_unread_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from effllava_optuna.surgery.structure.component_handle import ComponentHandle

    Fields = Mapping[str, float]
    # By path and name: shapes of parameters and buffers, and settings of modules.
    Outline = dict[tuple[str, str], object]

_HEADS = ("num_attention_heads", "num_heads", "attention_heads")


@dataclass(frozen=True)
class WidthFields:
    """The fields of a configuration that set the width of some components, and of nothing else.

    Models are built on the meta device, one for each width that the configuration accepts.

    Attributes:
        model: The model that has the configuration; it does not change.
        handles: Components with units of one shape, all in one tower.

    Raises:
        ExportError: The present configuration does not load, or describes no model.
    """

    model: Any
    handles: Sequence[ComponentHandle]
    _by_width: dict[int, Fields | None] = field(default_factory=dict)
    _refuted: set[tuple[str, ...]] = field(default_factory=set)

    def at(self, width: int) -> Fields | None:
        """Return the fields that express ``width``, with their values; None: no fields do."""
        if width not in self._by_width:
            self._by_width[width] = self._find(width)
        return self._by_width[width]

    def first(self, widths: Iterable[int]) -> int | None:
        """Return the first of ``widths`` that fields express; None: they express none."""
        return next((width for width in widths if self.at(width) is not None), None)

    def described_width(self, handle: ComponentHandle) -> int:
        """Return the width of a component in the model that the configuration describes."""
        columns: Any = self._described[f"{self._path(handle)}.{handle.output}", "in_features"]
        return int(columns) // handle.columns

    def _find(self, width: int) -> Fields | None:
        for fields in _candidate_fields(self.model.config, self.handles[0], width):
            if tuple(fields) in self._refuted:
                continue
            config = copy.deepcopy(self.model.config)
            try:
                set_fields(config, self.handles[0], fields)
                outline = _outline_of(config, stock_class(self.model))
            except Exception:  # configurations and models raise anything at sizes they cannot have
                continue
            expected = self._outline_at(width)
            if self.handles[0].component.kind is Kind.MLP:  # blocks may keep a copy of a field
                expected |= {
                    key: value
                    for key, value in outline.items()
                    if key[1] in fields and value == fields[key[1]]
                }
            if outline == expected:
                return fields
            self._refuted.add(tuple(fields))  # they set another size, too, or not this one
        return None

    @cached_property
    def _described(self) -> Outline:
        config = self.model.config
        try:
            return _outline_of(config, stock_class(self.model))
        except Exception as error:  # as above
            raise ExportError(
                f"{type(config).__name__} does not describe the model: {describe(error)}.",
                hint="Keep other blocks, so that the export can be loaded.",
            ) from error

    @cached_property
    def _paths(self) -> dict[int, str]:
        return {id(module): path for path, module in self.model.named_modules()}

    def _path(self, handle: ComponentHandle) -> str:
        return self._paths[id(handle.module)]

    def _outline_at(self, width: int) -> Outline:
        """Return the outline of the described model with components of another width."""
        outline = dict(self._described)
        for handle in self.handles:
            path = self._path(handle)
            for name, unit_rows in handle.inputs.items():
                linear, rows = f"{path}.{name}", unit_rows.per_unit * width
                columns = outline[linear, "in_features"]
                outline[linear, "out_features"] = rows
                outline[f"{linear}.weight", ""] = (rows, columns)
                if (f"{linear}.bias", "") in outline:
                    outline[f"{linear}.bias", ""] = (rows,)
            output, columns = f"{path}.{handle.output}", handle.columns * width
            outline[output, "in_features"] = columns
            outline[f"{output}.weight", ""] = (outline[output, "out_features"], columns)
            outline |= {(path, name): each * width for name, each in handle.counts.items()}
        return outline


def _outline_of(config: Any, stock: Any) -> Outline:
    """Outline the model that class ``stock`` builds from a configuration that is loaded from disk.

    Raises:
        Exception: The class of the configuration, or that of the model, refuses it.
    """
    loaded = type(config).from_dict(json.loads(config.to_json_string()))
    with torch.device("meta"):
        model = stock(loaded)
    remove_unread_blocks(model)  # as in an export
    tensors = (*model.named_parameters(), *model.named_buffers())
    outline: Outline = {(path, ""): tuple(tensor.shape) for path, tensor in tensors}
    for path, module in model.named_modules():
        outline |= {(path, name): value for name, value in module_settings(module)}
    return outline


def _tower_config(config: Any, tower: str) -> Any:
    """Return the part of a configuration that describes a tower; None if there is none."""
    if tower == LANGUAGE:
        return config.get_text_config()
    return getattr(config, "vision_config", None) if tower == VISION else None


def _candidate_fields(config: Any, handle: ComponentHandle, width: int) -> Iterator[Fields]:
    """Yield fields with values that may give components like ``handle`` ``width`` units."""
    tower_config = _tower_config(config, handle.component.tower)
    if tower_config is None:
        return
    if handle.component.kind is Kind.MLP:
        for name in ("intermediate_size", "ffn_dim"):
            if hasattr(tower_config, name):
                yield {name: width}
        if hasattr(tower_config, "mlp_ratio"):
            size = handle.linear(handle.output).out_features
            yield {"mlp_ratio": _ratio(width, size)}
            if width % size == 0:  # in some configurations it is an integer
                yield {"mlp_ratio": width // size}
        return
    head_dim = getattr(handle.module, "head_dim", None)
    if not isinstance(head_dim, int):
        return
    heads = width * handle.columns // head_dim
    head_fields = {name: heads for name in _HEADS if getattr(tower_config, name, None)}
    groups = 1 if "num_key_value_groups" in handle.counts else width
    yield {**head_fields, "num_key_value_heads": groups, "head_dim": head_dim}


def _ratio(width: int, size: int) -> float:
    """Return the ratio for which ``int(size * ratio)`` is ``width``."""
    ratio = width / size
    return ratio if int(size * ratio) == width else math.nextafter(ratio, math.inf)


def set_fields(config: Any, handle: ComponentHandle, fields: Fields) -> None:
    """Set fields of the part of ``config`` that describes the tower of ``handle``."""
    tower_config = _tower_config(config, handle.component.tower)
    for name, value in fields.items():
        if hasattr(tower_config, name):
            setattr(tower_config, name, value)
