"""Export a pruned model as a checkpoint that is verified in a fresh process, and load it back.

A ``native`` checkpoint has safetensors under the stock names, the stock ``model_type``, the layer
sizes as a plan in config.json, and a small modelling file for ``trust_remote_code=True``;
`load_pruned` loads it without running that file. A ``portable`` checkpoint is padded to sizes
that a stock configuration can express, and loads wherever the base model loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from effllava_optuna.checkpoint_format import is_directory
from effllava_optuna.errors import ExportError
from effllava_optuna.export_target import check_export_directory, is_export, resolve_target
from effllava_optuna.files import expand_home, scratch_beside, write_errors_as
from effllava_optuna.surgery.export.base_files import copy_base_files
from effllava_optuna.surgery.export.checkpoint_files import (
    size_plan,
    write_checkpoint,
    write_description,
)
from effllava_optuna.surgery.export.comparison import write_expected
from effllava_optuna.surgery.export.fresh_process import verify_in_fresh_process
from effllava_optuna.surgery.export.model_card import ModelCard
from effllava_optuna.surgery.export.stock_sizes import pad_to_stock_sizes
from effllava_optuna.surgery.export.stored_precision import in_stored_dtype
from effllava_optuna.surgery.export.vllm_verification import verify_in_vllm
from effllava_optuna.surgery.loading.checksums import write_checksums
from effllava_optuna.surgery.loading.example_inputs import build_example_inputs
from effllava_optuna.surgery.loading.loader import complete_export, load
from effllava_optuna.surgery.structure.pruned_class import has_plan
from effllava_optuna.vllm_package import vllm_python

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

    Form = Literal["native", "portable"]
    Engine = Literal["vllm"]


@dataclass(frozen=True, slots=True)
class Verification:
    """How an export is verified.

    Attributes:
        inputs: Keyword arguments of the model to compare outputs on; by default a picture and two
            questions, which need a processor.
        engine: ``vllm``: its greedy tokens must be those of the model, too. None: no engine.
    """

    inputs: Mapping[str, torch.Tensor] | None = None
    engine: Engine | None = None


@dataclass(frozen=True, slots=True)
class VerifiedExport:
    """The result of verifying an exported checkpoint in a fresh process.

    Attributes:
        directory: The checkpoint.
        parameters: Parameters of the whole model, padding included.
        logit_difference: Largest absolute difference of logits to the exported model, in float32.
        generation_equal: Whether greedy generation returns the same tokens.
        loader: How it was loaded: ``load_pruned``, ``trust_remote_code`` or the name of the stock
            ``Auto`` class.
        padded: Fraction of the parameters that is padding.
        dtype: Dtype of the weights, such as ``bfloat16``.
        engines: Engines that returned the same tokens, with their versions.
    """

    directory: str
    parameters: int
    logit_difference: float
    generation_equal: bool
    loader: tuple[str, ...]
    padded: float = 0.0
    dtype: str = "float32"
    engines: tuple[str, ...] = ()


def export(
    pruned: LoadedModel,
    directory: str | Path,
    *,
    form: Form = "native",
    card: ModelCard | None = None,
    verification: Verification | None = None,
    overwrite: bool = False,
) -> VerifiedExport:
    """Write ``pruned`` to ``directory`` and verify it in a fresh process, or in an engine, too.

    The weights are rounded to the dtype of the checkpoint that the model was loaded from, unless
    `load` was called with another one (`LoadedModel.stored_dtype`).

    Args:
        pruned: A result of `sliced`.
        directory: Created with its parents. It appears complete or not at all.
        form: ``native``: each layer has its own size. ``portable``: padded with zeros to
            the next width that the stock configuration accepts, one for each tower and kind, or
            to the dense width; loads in stock transformers and wherever the base model loads.
        card: Data and measurements of the model card.
        verification: Inputs to compare outputs on, and an engine to verify the checkpoint in; by
            default a picture and two questions, and no engine.
        overwrite: Replace an earlier export.

    Raises:
        ExportError: The directory is not empty or cannot be written, there are no inputs to
            compare outputs on, the model is narrowed instead of sliced, its sizes are not
            portable, a weight is too large for float16, the reloaded checkpoint has other keys,
            logits or tokens, or the engine is not installed, does not load the checkpoint, or
            generates other tokens.
    """
    if form not in ("native", "portable"):
        raise ExportError(f"form is {form!r}.", hint="Use native or portable, or export_onnx().")
    check_export_directory(directory, overwrite=overwrite)
    target = resolve_target(directory)
    verification = verification or Verification()
    if verification.engine is not None:
        vllm_python()
    inputs = verification.inputs
    is_example = inputs is None
    if inputs is None:
        if pruned.processor is None:
            raise ExportError(
                f"{pruned.source} has no processor to create example inputs.",
                hint="Use verification=Verification(inputs=...) to compare outputs on.",
            )
        inputs = build_example_inputs(pruned.processor)
    if form == "portable" and pruned.visual_tokens is not None:
        raise ExportError(
            f"{pruned.source} has reduced image tokens, which no stock configuration describes.",
            hint="Export it as native, or with all image tokens.",
        )
    rounded = in_stored_dtype(pruned)
    written = pad_to_stock_sizes(rounded) if form == "portable" else rounded
    plan = size_plan(written)
    if form == "portable" and (plan["linears"] or plan["counts"]):
        raise ExportError(
            f"{pruned.source} has sizes or biases that its configuration cannot express, such as "
            f"{next(iter(plan['linears'] or plan['counts']))}.",
            hint="Export it as native.",
        )
    hint = "Choose a directory on a disk with room for the checkpoint."
    with write_errors_as(ExportError, target, hint=hint), scratch_beside(target) as scratch:
        draft = scratch / "checkpoint"
        write_checkpoint(written, draft, plan if form == "native" else None)
        copy_base_files(pruned.source, pruned.processor, draft)
        write_expected(rounded.model, written.model, inputs, scratch, is_example=is_example)
        measured = verify_in_fresh_process(rounded, draft, scratch)
        padded = 1 - pruned.model.num_parameters() / written.model.num_parameters()
        if verification.engine is not None:
            measured["engines"] = (verify_in_vllm(rounded, draft, verification.inputs),)
        dtype = str(pruned.export_dtype).removeprefix("torch.")
        verified = VerifiedExport(str(directory), **measured, padded=round(padded, 6), dtype=dtype)
        write_description(pruned, draft, form, card or ModelCard(), verified)
        write_checksums(draft)
        _replace(target, draft, scratch)
    return verified


def _replace(target: Path, draft: Path, scratch: Path) -> None:
    """Rename ``draft`` to ``target``; an earlier export is moved to ``scratch``, or stays."""
    earlier = scratch / "earlier"
    if target.exists():
        target.rename(earlier)
    try:
        draft.rename(target)
    except OSError:
        if earlier.exists():
            earlier.rename(target)
        raise


def load_pruned(
    path_or_id: str | Path, *, device: str = "auto", dtype: str = "auto"
) -> LoadedModel:
    """Load a checkpoint that `export` wrote, without running code from there.

    A copy that ``save_pretrained`` of the loaded model wrote can be loaded, too; it has no record
    of the kept units.

    Args:
        path_or_id: A directory, or a hub id.
        device: See `load`.
        dtype: See `load`.

    Raises:
        ModelError: There is no such checkpoint, or it is damaged.
    """
    place: str | Path = expand_home(path_or_id)
    if isinstance(path_or_id, str) and not is_directory(place):
        place = complete_export(path_or_id)
    if not (is_export(place) or has_plan(place)):
        raise ExportError(
            f"{path_or_id} holds no checkpoint that effllava_optuna wrote.",
            hint="Use a directory that `export` wrote, or load() for other checkpoints.",
        )
    return load(path_or_id, device=device, dtype=dtype)
