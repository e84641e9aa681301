"""Round a model to the dtype of the checkpoint that it was loaded from."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from effllava_optuna.errors import ExportError

if TYPE_CHECKING:
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel


def in_stored_dtype(pruned: LoadedModel) -> LoadedModel:
    """Return a model with the weights of an export; itself if it has the dtype of exports.

    Weights that its class keeps in float32 stay in float32, as transformers loads them.

    Raises:
        ExportError: A weight is too large for float16.
    """
    dtype = pruned.export_dtype
    if pruned.model.dtype == dtype:
        return pruned
    kept = [re.compile(rf"(^|\.){part}(\.|$)") for part in pruned.model._get_dtype_plan(dtype)]
    memo: dict[int, Any] = {}
    for name, weight in pruned.model.named_parameters():
        if weight.is_floating_point() and not any(part.search(name) for part in kept):
            memo[id(weight)] = nn.Parameter(_rounded(name, weight, dtype), requires_grad=False)
    model = copy.deepcopy(pruned.model, memo)
    config = model.config
    parts = [getattr(config, name, None) for name in config.sub_configs]
    for part in (config, *(part for part in parts if part is not None)):
        part.dtype = dtype
    return replace(pruned, model=model)


def _rounded(name: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rounded = weight.detach().to(dtype)
    if not torch.isfinite(rounded).all():
        raise ExportError(
            f"{name} has values up to {float(weight.abs().max()):.3g}, which {dtype} cannot hold.",
            hint='Load the model with dtype="float32" or "bfloat16", in which exports are then '
            "written.",
        )
    return rounded
