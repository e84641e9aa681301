"""Write the language part of a pruned model as ONNX, and verify it with onnxruntime.

The graph maps ``inputs_embeds`` (batch, sequence, hidden) and ``attention_mask`` (batch,
sequence; 1 for tokens, 0 for padding on the left) to ``logits`` (batch, sequence, vocabulary), for
any batch and sequence size. Layers may have different widths. Vision tower, projector and token
embeddings are not in the graph, nor is a key-value cache: the graph computes the prefill. That of
a text decoder has its token embeddings, and ``input_ids`` (batch, sequence) instead of
``inputs_embeds``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from effllava_optuna.errors import ExportError, describe
from effllava_optuna.export_target import (
    ONNX_PACKAGES,
    check_onnx_file,
    onnx_weights_file,
    require_packages,
    resolve_target,
)
from effllava_optuna.files import expand_home, scratch_beside, write_errors_as
from effllava_optuna.surgery.apply.precision import in_float32
from effllava_optuna.surgery.export.comparison import within_tolerance
from effllava_optuna.surgery.export.onnx_tracing import input_name, trace_prefill
from effllava_optuna.surgery.loading.example_inputs import build_example_inputs
from effllava_optuna.surgery.structure.inspection import language_model

if TYPE_CHECKING:
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

_MAX_EMBEDDED_BYTES = 2**30  # of weights in the file itself; a protobuf holds at most 2 GiB


@dataclass(frozen=True, slots=True)
class VerifiedOnnxExport:
    """The result of verifying an ONNX file with onnxruntime.

    Attributes:
        path: The file.
        parameters: Numbers in its initializers.
        logit_difference: Largest absolute difference of logits to the exported model.
        shapes: Rows and tokens of the inputs that were compared.
        visual_tokens: Share of the image tokens that are selected before the graph, which reads
            the embeddings of those alone.
    """

    path: str
    parameters: int
    logit_difference: float
    shapes: tuple[tuple[int, int], ...]
    visual_tokens: float = 1.0


def export_onnx(
    pruned: LoadedModel, path: str | Path, *, overwrite: bool = False
) -> VerifiedOnnxExport:
    """Write the language part of ``pruned`` to ``path`` and verify it with onnxruntime.

    Args:
        pruned: A result of `sliced`, in float32 or float16.
        path: The file; it appears complete or not at all. Weights of more than one gibibyte are
            written beside it, to a file with the same name and ``.data``.
        overwrite: Replace an existing file.

    Raises:
        ExportError: A package is missing, the file exists or cannot be written, the language
            part cannot be traced, or onnxruntime computes other logits.
    """
    check_onnx_file(path, overwrite=overwrite)
    target = resolve_target(path)
    weights = onnx_weights_file(target)
    if pruned.model.dtype not in (torch.float32, torch.float16):
        raise ExportError(
            f"{pruned.source} has dtype {pruned.model.dtype}, which onnxruntime does not support.",
            hint='Load it with dtype="float32".',
        )
    if pruned.processor is None:
        raise ExportError(
            f"{pruned.source} has no processor to create example inputs.",
            hint="Load the model with its processor.",
        )
    hint = "Choose a place on a disk with room for the weights."
    with write_errors_as(ExportError, target, hint=hint), scratch_beside(target) as scratch:
        draft = scratch / target.name
        program = trace_prefill(pruned)
        program.model.doc_string = _describe(pruned)
        size = sum(weight.nbytes for weight in pruned.model.parameters())
        program.save(draft, external_data=size > _MAX_EMBEDDED_BYTES)
        verified = verify_onnx(pruned, draft)
        target.unlink(missing_ok=True)
        weights.unlink(missing_ok=True)
        draft_weights = draft.with_name(weights.name)
        if draft_weights.exists():
            draft_weights.rename(weights)
        draft.rename(target)
    return replace(verified, path=str(path))


def _describe(pruned: LoadedModel) -> str:
    """Return what the file computes and what it cannot carry, for the file itself."""
    text = f"The decoder of {pruned.source}, pruned: its prefill, without a key-value cache."
    if input_name(pruned) == "input_ids":
        return text
    text = f"{text} Token embeddings, vision tower and projector are not in the file."
    reduction = pruned.visual_tokens
    if reduction is None:
        return text
    return (
        f"{text} Nor is the selection of {reduction.ratio:.0%} of the image tokens by "
        f"{reduction.selection}: it reads the embeddings of those alone."
    )


@torch.no_grad()
def verify_onnx(pruned: LoadedModel, path: str | Path) -> VerifiedOnnxExport:
    """Check that the ONNX file at ``path`` computes the language part of ``pruned``.

    Two questions about a picture are compared in one padded batch, and the first of them alone.
    The reference is the output of the whole model. So a family is refused if its decoder reads
    more than embeddings and a mask. In float16, the difference may be four times that which
    float16 makes in the model itself.

    Raises:
        ExportError: A package is missing, onnxruntime cannot run the file, or its logits differ
            by more than rounding.
    """
    require_packages("ONNX", "onnx", ONNX_PACKAGES)
    import onnxruntime

    path = expand_home(path)
    inputs, reference = _graph_inputs(pruned)
    first_tokens = inputs["attention_mask"][0].bool()
    cases = [
        (inputs, reference.logits),
        (
            {name: value[:1, first_tokens] for name, value in inputs.items()},
            reference.logits[:1, first_tokens],
        ),
    ]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: errors are raised as well
    differences = []
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for case_inputs, case_logits in cases:
            (output,) = session.run(
                ["logits"], {name: value.cpu().numpy() for name, value in case_inputs.items()}
            )
            real = case_inputs["attention_mask"].bool().cpu()
            difference = torch.from_numpy(output).float() - case_logits
            differences.append(difference[real].abs().max())
    except Exception as error:  # the errors of onnxruntime have no common base class
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} does not run the ONNX export of "
            f"{pruned.source}: {describe(error)}.",
            hint="Nothing was written.",
        ) from error
    largest = float(torch.stack(differences).max())
    if not within_tolerance(largest, float(reference.logits.abs().max()), reference.rounding):
        raise ExportError(
            f"The ONNX export of {pruned.source} is not the same model: logits differ by "
            f"{largest:.2g}.",
            hint="Nothing was written. The decoder may need more than embeddings and a mask.",
        )
    masks = [case_inputs["attention_mask"] for case_inputs, _ in cases]
    shapes = tuple((len(mask), mask.shape[1]) for mask in masks)
    kept = 1.0 if pruned.visual_tokens is None else pruned.visual_tokens.ratio
    return VerifiedOnnxExport(str(path), _count_parameters(path), largest, shapes, kept)


class _Reference(NamedTuple):
    """The logits of a model, shape ``(batch, sequence, vocabulary)``, computed in float32.

    Attributes:
        logits: The logits, on the CPU.
        rounding: Their largest difference to those that the model computes in its own dtype.
    """

    logits: torch.Tensor
    rounding: float


def _graph_inputs(pruned: LoadedModel) -> tuple[dict[str, torch.Tensor], _Reference]:
    """Return inputs of the graph for two questions, one of them padded, and their logits."""
    examples = build_example_inputs(pruned.processor)
    if input_name(pruned) == "input_ids":
        examples = _with_padded_row(examples["input_ids"])
    inputs = {name: value.to(pruned.device) for name, value in examples.items()}
    embeddings: list[torch.Tensor] = []

    def keep_embeddings(_: nn.Module, arguments: Any, named: dict[str, Any]) -> Any:
        """Record the decoder's input, and repeat it in float32: its rounding is no difference."""
        if named.get("inputs_embeds") is not None:
            embeddings.append(named["inputs_embeds"])
            named = named | {"inputs_embeds": embeddings[0].to(embeddings[-1].dtype)}
        return arguments, named

    model = pruned.model
    with pruned.lock:
        hook = language_model(model).register_forward_pre_hook(keep_embeddings, with_kwargs=True)
        try:
            own = model(**inputs).logits.float().cpu()
            with in_float32(model):
                logits = model(**inputs).logits.float().cpu()
        finally:
            hook.remove()
    mask = inputs["attention_mask"]
    rounding = float((own - logits)[mask.bool().cpu()].abs().max())
    name = input_name(pruned)
    tokens = embeddings[0] if name == "inputs_embeds" else inputs[name]
    return {name: tokens, "attention_mask": mask}, _Reference(logits, rounding)


def _with_padded_row(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a batch of a question without its last token, padded on the left, and all of it."""
    padded = torch.cat([tokens[:, :1], tokens[:, :-1]], 1)
    mask = torch.ones(2, tokens.shape[1], dtype=torch.long)
    mask[0, 0] = 0
    return {"input_ids": torch.cat([padded, tokens]), "attention_mask": mask}


def _count_parameters(path: str | Path) -> int:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return sum(int(torch.Size(weight.dims).numel()) for weight in graph.initializer)
