"""Write the language part of a pruned model as ONNX, and verify it with onnxruntime.

The graph maps ``inputs_embeds`` (batch, sequence, hidden) and ``attention_mask`` (batch,
sequence; 1 for tokens, 0 for padding on the left) to ``logits`` (batch, sequence, vocabulary), for
any batch and sequence size. Layers may have different widths. Vision tower, projector and token
embeddings are not in the graph, nor is a key-value cache: the graph computes the prefill.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from effllava_optuna.errors import ExportError, describe
from effllava_optuna.export_target import check_onnx_file, onnx_weights_file
from effllava_optuna.files import expand_home, scratch_beside, write_errors_as
from effllava_optuna.surgery.export.comparison import within_tolerance
from effllava_optuna.surgery.loading.example_inputs import build_example_inputs
from effllava_optuna.surgery.structure.inspection import language_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_TRACED_SHAPE = (3, 8)  # rows and tokens; the graph takes any numbers of them
_MAX_EMBEDDED_BYTES = 2**30  # of weights in the file itself; a protobuf holds at most 2 GiB


@dataclass(frozen=True, slots=True)
class VerifiedOnnxExport:
    """The result of verifying an ONNX file with onnxruntime.

    Attributes:
        path: The file.
        parameters: Numbers in its initializers.
        logit_difference: Largest absolute difference of logits to the exported model.
        shapes: Rows and tokens of the inputs that were compared.
    """

    path: str
    parameters: int
    logit_difference: float
    shapes: tuple[tuple[int, int], ...]


class _EmbeddingsToLogits(nn.Module):
    """A model as a function of input embeddings and attention mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Compute the logits at every position, shape ``(batch, sequence, vocabulary)``."""
        logits: torch.Tensor = self.model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False
        ).logits
        return logits


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
    _check_packages()
    target = expand_home(path).resolve()
    weights = onnx_weights_file(target)
    check_onnx_file(path, overwrite=overwrite)
    if pruned.model.dtype not in (torch.float32, torch.float16):
        raise ExportError(
            f"{pruned.source} has dtype {pruned.model.dtype}, which onnxruntime does not support.",
            hint='Load it with dtype="float32".',
        )
    hint = "Choose a place on a disk with room for the weights."
    with write_errors_as(ExportError, target, hint=hint), scratch_beside(target) as scratch:
        draft = scratch / target.name
        program = _trace(pruned)
        size = sum(weight.nbytes for weight in pruned.model.parameters())
        program.save(draft, external_data=size > _MAX_EMBEDDED_BYTES)
        verified = verify_onnx(pruned, draft)
        target.unlink(missing_ok=True)
        weights.unlink(missing_ok=True)
        draft_weights = draft.with_name(weights.name)
        if draft_weights.exists():
            draft_weights.rename(weights)
        draft.rename(target)
    return VerifiedOnnxExport(
        str(path), verified.parameters, verified.logit_difference, verified.shapes
    )


@torch.no_grad()
def verify_onnx(pruned: LoadedModel, path: str | Path) -> VerifiedOnnxExport:
    """Check that the ONNX file at ``path`` computes the language part of ``pruned``.

    Two questions about a picture are compared in one padded batch, and the first of them alone.
    The reference is the output of the whole model. So a family is refused if its decoder reads
    more than embeddings and a mask.

    Raises:
        ExportError: A package is missing, onnxruntime cannot run the file, or its logits differ
            by more than rounding.
    """
    _check_packages()
    import onnxruntime

    path = expand_home(path)
    inputs, expected = _decoder_inputs(pruned)
    first_tokens = inputs["attention_mask"][0].bool()
    cases = [
        (inputs, expected),
        (
            {name: value[:1, first_tokens] for name, value in inputs.items()},
            expected[:1, first_tokens],
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
    if not within_tolerance(largest, float(expected.abs().max())):
        raise ExportError(
            f"The ONNX export of {pruned.source} is not the same model: logits differ by "
            f"{largest:.2g}.",
            hint="Nothing was written. The decoder may need more than embeddings and a mask.",
        )
    masks = [case_inputs["attention_mask"] for case_inputs, _ in cases]
    shapes = tuple((len(mask), mask.shape[1]) for mask in masks)
    return VerifiedOnnxExport(str(path), _count_parameters(path), largest, shapes)


def _check_packages() -> None:
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise ExportError(
                f"ONNX needs {package}, which is not installed.",
                hint="Run `pip install 'effllava-optuna[onnx]'`.",
            )


def _decoder_inputs(pruned: LoadedModel) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the decoder's inputs for two questions about a picture, and the model's logits."""
    captured: list[torch.Tensor] = []
    examples = build_example_inputs(pruned.processor)
    inputs = {name: value.to(pruned.device) for name, value in examples.items()}
    with pruned.lock:
        hook = language_model(pruned.model).register_forward_pre_hook(
            lambda _, __, named: captured.append(named["inputs_embeds"]), with_kwargs=True
        )
        try:
            logits = pruned.model(**inputs).logits
        finally:
            hook.remove()
    decoder_inputs = {"inputs_embeds": captured[0], "attention_mask": inputs["attention_mask"]}
    return decoder_inputs, logits.float().cpu()


def _trace(pruned: LoadedModel) -> Any:
    """Trace the language part for any number of rows and tokens."""
    model = pruned.model
    width = model.get_input_embeddings().embedding_dim
    embeddings = torch.zeros(*_TRACED_SHAPE, width, dtype=model.dtype, device=pruned.device)
    mask = torch.ones(_TRACED_SHAPE, dtype=torch.long, device=pruned.device)
    mask[0, 0] = 0
    any_size = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    with pruned.lock, _without_tracer_messages():
        try:
            program: Any = torch.onnx.export(
                _EmbeddingsToLogits(model).eval(),
                (embeddings, mask),
                input_names=["inputs_embeds", "attention_mask"],
                output_names=["logits"],
                dynamic_shapes=({0: "batch", 1: "sequence"}, any_size),
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # from anywhere in the tracer, the model or onnxscript
            raise ExportError(
                f"The language part of {pruned.source} cannot be traced: {describe(error)}.",
                hint="Export it natively; `export` writes every model that can be pruned.",
            ) from error
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # file names and line numbers of the traced code
    return program


@contextmanager
def _without_tracer_messages() -> Iterator[None]:
    """Suppress messages of the tracer about itself and about a torchvision that is not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _count_parameters(path: str | Path) -> int:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return sum(int(torch.Size(weight.dims).numel()) for weight in graph.initializer)
