"""Search structured-pruning policies for Hugging Face vision-language models with Optuna.

The names below are loaded when they are first used (PEP 562): importing this package does not
import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effllava_optuna.policy import Policy as Policy
    from effllava_optuna.surgery.export import export as export
    from effllava_optuna.surgery.export import load_pruned as load_pruned
    from effllava_optuna.surgery.load import load as load
    from effllava_optuna.surgery.loaded import Loaded as Loaded
    from effllava_optuna.surgery.narrow import masked as masked
    from effllava_optuna.surgery.narrow import narrowed as narrowed
    from effllava_optuna.surgery.narrow import sliced as sliced
    from effllava_optuna.surgery.onnx import export_onnx as export_onnx
    from effllava_optuna.surgery.rank import rank_units as rank_units

__version__ = "0.1.0"

_HOMES = {
    "Loaded": "surgery",
    "Policy": "policy",
    "export": "surgery",
    "export_onnx": "surgery",
    "load": "surgery",
    "load_pruned": "surgery",
    "masked": "surgery",
    "narrowed": "surgery",
    "rank_units": "surgery",
    "sliced": "surgery",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
