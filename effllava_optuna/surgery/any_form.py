"""Export a model in any form."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from effllava_optuna.surgery.export.checkpoint import Verification, VerifiedExport, export
from effllava_optuna.surgery.export.onnx_export import VerifiedOnnxExport, export_onnx
from effllava_optuna.surgery.gguf.gguf_export import VerifiedGgufExport, export_gguf

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from effllava_optuna.export_target import ExportForm
    from effllava_optuna.surgery.export.model_card import ModelCard
    from effllava_optuna.surgery.gguf.tensors import GgufType
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

VerifiedAnyForm: TypeAlias = VerifiedExport | VerifiedOnnxExport | VerifiedGgufExport

_GGUF: Mapping[str, GgufType] = {"gguf": "f16", "gguf-q8_0": "q8_0", "gguf-f32": "f32"}


def export_any_form(
    pruned: LoadedModel,
    path: str | Path,
    form: ExportForm,
    *,
    card: ModelCard | None = None,
    verification: Verification | None = None,
    overwrite: bool = False,
) -> VerifiedAnyForm:
    """Export a model in a form, and verify it.

    Args:
        pruned: The model.
        path: The directory; for ``onnx`` and ``gguf`` the file.
        form: ``native`` or ``portable``: a checkpoint (see `export`); ``onnx``: the language part
            alone; ``gguf``: files for llama.cpp.
        card: Data and measurements of the model card of a checkpoint.
        verification: How a checkpoint is verified.
        overwrite: Replace an earlier export.

    Raises:
        ExportError: The model has no such form, or the export cannot be written or verified.
    """
    if form == "onnx":
        return export_onnx(pruned, path, overwrite=overwrite)
    if form in _GGUF:
        return export_gguf(pruned, path, kind=_GGUF[form], overwrite=overwrite)
    return export(
        pruned,
        path,
        form="portable" if form == "portable" else "native",
        card=card,
        verification=verification,
        overwrite=overwrite,
    )
