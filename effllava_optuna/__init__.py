"""Search structured-pruning policies for Hugging Face vision-language models with Optuna.

Names are imported when they are first used (PEP 562), so that importing this package does not
import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.lazy_names import lazy_names

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

_MODULES = {
    "LoadedModel": ".surgery",
    "Policy": ".policy",
    "export": ".surgery",
    "export_gguf": ".surgery",
    "export_onnx": ".surgery",
    "load": ".surgery",
    "load_pruned": ".surgery",
    "masked": ".surgery",
    "narrowed": ".surgery",
    "rank_units": ".surgery",
    "sliced": ".surgery",
}

__all__ = [*_MODULES]
__getattr__ = lazy_names(__name__, _MODULES)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
