"""Search structured-pruning policies for Hugging Face vision-language models with Optuna.

Names are imported when they are first used (PEP 562), so that importing this package does not
import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effllava_optuna.policy import Policy as Policy
    from effllava_optuna.surgery.apply.masking import masked as masked
    from effllava_optuna.surgery.apply.narrowing import narrowed as narrowed
    from effllava_optuna.surgery.apply.slicing import sliced as sliced
    from effllava_optuna.surgery.export.checkpoint import export as export
    from effllava_optuna.surgery.export.checkpoint import load_pruned as load_pruned
    from effllava_optuna.surgery.export.onnx_export import export_onnx as export_onnx
    from effllava_optuna.surgery.gguf.gguf_export import export_gguf as export_gguf
    from effllava_optuna.surgery.importance.criteria import rank_units as rank_units
    from effllava_optuna.surgery.loading.loader import load as load
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel as LoadedModel

__version__ = "0.1.0"

_PACKAGES = {
    "LoadedModel": "surgery",
    "Policy": "policy",
    "export": "surgery",
    "export_gguf": "surgery",
    "export_onnx": "surgery",
    "load": "surgery",
    "load_pruned": "surgery",
    "masked": "surgery",
    "narrowed": "surgery",
    "rank_units": "surgery",
    "sliced": "surgery",
}

__all__ = [*_PACKAGES]


def __getattr__(name: str) -> Any:
    if name not in _PACKAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PACKAGES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
