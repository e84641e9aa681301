"""Write the language part of a pruned model as ONNX, and prove that onnxruntime computes it.

The graph goes from ``inputs_embeds`` (batch, sequence, hidden) and ``attention_mask`` (batch,
sequence; 1 where there is a token, padded on the left) to ``logits`` (batch, sequence,
vocabulary); batch and sequence may have any size. Layers of different widths are nothing special
there. Vision tower, projector and token embeddings stay outside, and there is no cache: it is the
prefill.
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
from effllava_optuna.files import scratch_beside, write_errors_as
from effllava_optuna.surgery.discover import language_model
from effllava_optuna.surgery.export import TOLERANCE
from effllava_optuna.surgery.probe import probe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.surgery.loaded import Loaded

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_TRACED = (3, 8)  # rows and tokens: none of them is asked of the file afterwards
_ONE_FILE = 2**30  # bytes of weights; a protobuf ends at two gibibytes


@dataclass(frozen=True, slots=True)
class VerifiedOnnx:
    """What onnxruntime found in an ONNX file.

    Attributes:
        path: Where it is.
        parameters: Numbers in its initializers.
        logit_difference: Largest absolute difference to the model that was exported.
        shapes: Rows and tokens of the inputs on which the two were compared.
    """

    path: str
    parameters: int
    logit_difference: float
    shapes: tuple[tuple[int, int], ...]


class _Language(nn.Module):
    """The model as a function of embeddings that are there already."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Give the logits at every position: shape ``(batch, sequence, vocabulary)``."""
        logits: torch.Tensor = self.model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False
        ).logits
        return logits


def export_onnx(pruned: Loaded, path: str | Path, *, overwrite: bool = False) -> VerifiedOnnx:
    """Write the language part of ``pruned`` to ``path`` and check it against onnxruntime.

    Args:
        pruned: What `sliced` gave, in float32 or float16.
        path: The file; it appears complete or not at all. Weights of more than a gibibyte lie
            beside it, in a file with ``.data`` behind the name.
        overwrite: Replace a file that is already there.

    Raises:
        ExportError: A package is missing, the file is there or cannot be written, or the language
            part cannot be traced, or onnxruntime computes something else.
    """
    _need()
    target = Path(path).resolve()
    weights = target.with_name(f"{target.name}.data")
    if target.is_dir() or (not overwrite and (target.exists() or weights.exists())):
        raise ExportError(
            f"{path} is there already.",
            hint="Choose another name, or allow overwriting an earlier export.",
        )
    if pruned.model.dtype not in (torch.float32, torch.float16):
        raise ExportError(
            f"{pruned.source} has {pruned.model.dtype}, which onnxruntime does not compute.",
            hint='Load it with dtype="float32".',
        )
    hint = "Choose a place on a disk with room for the weights."
    with write_errors_as(ExportError, target, hint=hint), scratch_beside(target) as scratch:
        draft = scratch / target.name
        program = _traced(pruned)
        size = sum(weight.nbytes for weight in pruned.model.parameters())
        program.save(draft, external_data=size > _ONE_FILE)
        found = verify_onnx(pruned, draft)
        target.unlink(missing_ok=True)
        weights.unlink(missing_ok=True)
        beside = draft.with_name(weights.name)
        if beside.exists():
            beside.rename(weights)
        draft.rename(target)
    return VerifiedOnnx(str(path), found.parameters, found.logit_difference, found.shapes)


@torch.no_grad()
def verify_onnx(pruned: Loaded, path: str | Path) -> VerifiedOnnx:
    """Check that the ONNX file at ``path`` computes the language part of ``pruned``.

    Two questions about a picture are asked at once, padded, and then one of them alone. What is
    expected is the answer of the whole model, so that a family whose decoder is told more than
    embeddings and a mask is refused.

    Raises:
        ExportError: A package is missing, onnxruntime cannot run the file, or its logits differ
            by more than rounding.
    """
    _need()
    import onnxruntime

    inputs, expected = _asked(pruned)
    single = inputs["attention_mask"][0].bool()
    asked = [
        (inputs, expected),
        ({name: value[:1, single] for name, value in inputs.items()}, expected[:1, single]),
    ]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is raised as well
    differences = []
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for fed, logits in asked:
            (answer,) = session.run(
                ["logits"], {name: value.cpu().numpy() for name, value in fed.items()}
            )
            real = fed["attention_mask"].bool().cpu()
            differences.append((torch.from_numpy(answer).float() - logits)[real].abs().max())
    except Exception as error:  # onnxruntime's own errors have no common family
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} does not run the ONNX export of "
            f"{pruned.source}: {describe(error)}.",
            hint="Nothing was written.",
        ) from error
    worst = float(torch.stack(differences).max())
    if not worst <= TOLERANCE[pruned.model.dtype] * max(1.0, float(expected.abs().max())):
        raise ExportError(
            f"The ONNX export of {pruned.source} is another model: logits differ by {worst:.2g}.",
            hint="Nothing was written. The decoder may need more than embeddings and a mask.",
        )
    shapes = tuple(
        (len(mask), mask.shape[1]) for mask in (fed["attention_mask"] for fed, _ in asked)
    )
    return VerifiedOnnx(str(path), _numbers(path), worst, shapes)


def _need() -> None:
    for package in _NEEDED:
        if find_spec(package) is None:
            raise ExportError(
                f"ONNX needs {package}, which is not installed.",
                hint="Run `pip install 'effllava-optuna[onnx]'`.",
            )


def _asked(pruned: Loaded) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Give what the decoder is told about a picture, and the logits of the whole model."""
    caught: list[torch.Tensor] = []
    asked = {name: value.to(pruned.device) for name, value in probe(pruned.processor).items()}
    with pruned.lock:
        hook = language_model(pruned.model).register_forward_pre_hook(
            lambda _, __, named: caught.append(named["inputs_embeds"]), with_kwargs=True
        )
        try:
            logits = pruned.model(**asked).logits
        finally:
            hook.remove()
    inputs = {"inputs_embeds": caught[0], "attention_mask": asked["attention_mask"]}
    return inputs, logits.float().cpu()


def _traced(pruned: Loaded) -> Any:
    """Trace the language part for any number of rows and tokens."""
    model = pruned.model
    width = model.get_input_embeddings().embedding_dim
    embeddings = torch.zeros(*_TRACED, width, dtype=model.dtype, device=pruned.device)
    mask = torch.ones(_TRACED, dtype=torch.long, device=pruned.device)
    mask[0, 0] = 0
    any_size = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    with pruned.lock, _quiet():
        try:
            program: Any = torch.onnx.export(
                _Language(model).eval(),
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
                hint="Export it natively; `export` writes every model that can be cut.",
            ) from error
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in which file of this machine it was traced
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's remarks on itself, and on a torchvision that is not needed, to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _numbers(path: str | Path) -> int:
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return sum(int(torch.Size(weight.dims).numel()) for weight in graph.initializer)
