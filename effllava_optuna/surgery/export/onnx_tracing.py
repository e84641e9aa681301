"""Trace the language part of a model as an ONNX program, without the tracer's messages."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import nn

from effllava_optuna.errors import ExportError, describe
from effllava_optuna.processors import takes_pictures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

_TRACED_SHAPE = (3, 8)  # rows and tokens; the graph takes any numbers of them


def input_name(pruned: LoadedModel) -> str:
    """Return the name of the input for each token: embeddings if there are pictures, else ids."""
    takes_images = takes_pictures(pruned.processor)
    return "inputs_embeds" if takes_images else "input_ids"


def trace_prefill(pruned: LoadedModel) -> Any:
    """Trace the language part for any number of rows and tokens.

    Raises:
        ExportError: It cannot be traced.
    """
    model, name = pruned.model, input_name(pruned)
    tokens = torch.zeros(_TRACED_SHAPE, dtype=torch.long, device=pruned.device)
    if name == "inputs_embeds":
        width = model.get_input_embeddings().embedding_dim
        tokens = torch.zeros(*_TRACED_SHAPE, width, dtype=model.dtype, device=pruned.device)
    mask = torch.ones(_TRACED_SHAPE, dtype=torch.long, device=pruned.device)
    mask[0, 0] = 0
    any_size = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    with pruned.lock, _without_tracer_messages():
        try:
            program: Any = torch.onnx.export(
                _Prefill(model, name).eval(),
                (tokens, mask),
                input_names=[name, "attention_mask"],
                output_names=["logits"],
                dynamic_shapes=({0: "batch", 1: "sequence"}, any_size),
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # from anywhere in the tracer, the model or onnxscript
            cause: BaseException = error
            while cause.__cause__ is not None:  # the tracer's own message is general advice
                cause = cause.__cause__
            raise ExportError(
                f"The language part of {pruned.source} cannot be traced: {describe(cause)}.",
                hint="Export it natively; `export` writes every model that can be pruned.",
            ) from error
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # file names and line numbers of the traced code
    return program


@contextmanager
def _without_tracer_messages() -> Iterator[None]:
    """Suppress messages of the tracer about itself and about a torchvision that is not needed.

    It prints its graph, thousands of lines, if it fails (transformers issue 33414).
    """
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch.")]
    levels = {
        logger: logger.level
        for logger in map(logging.getLogger, ("torch", "torch.onnx", *names))
        if logger.level or logger.name in ("torch", "torch.onnx")  # all others inherit theirs
    }
    for logger in levels:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), redirect_stderr(_OtherThreads(sys.stderr)):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


class _OtherThreads(io.TextIOBase):
    """A stream that drops what the thread that creates it writes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


class _Prefill(nn.Module):
    """A model as a function of one input for each token and the attention mask."""

    def __init__(self, model: nn.Module, input_name: str) -> None:
        super().__init__()
        self.model = model
        self._input_name = input_name

    def forward(self, tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Compute the logits at every position, shape ``(batch, sequence, vocabulary)``."""
        inputs = {self._input_name: tokens, "attention_mask": attention_mask}
        logits: torch.Tensor = self.model(**inputs, use_cache=False).logits
        return logits
