"""Capture work on a GPU as a CUDA graph, so that launching kernels is not timed."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WARMUP = 2  # runs before a capture: kernels are chosen and memory is allocated outside of it


def captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Capture ``run`` as a CUDA graph, and return a function that replays it.

    Raises:
        RuntimeError: ``run`` copies to the host, or does something else that cannot be captured.
    """
    with _unchecked(), torch.cuda.device(device):
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types for it
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARMUP):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    replay: Callable[[], object] = graph.replay
    return replay


@contextmanager
def _unchecked() -> Iterator[None]:
    """Stop transformers from comparing counts on the host, which would end a capture.

    Its switch for that skips the checks, but formats their messages first, with tensors in them;
    reading a tensor for a message waits for the device, too.
    """
    with (
        mock.patch.dict(os.environ, {"TRANSFORMERS_DISABLE_TORCH_CHECK": "1"}),
        mock.patch.object(torch.Tensor, "__format__", return_value="a tensor"),
    ):
        yield
