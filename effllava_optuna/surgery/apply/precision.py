"""Run a half-precision model in float32, with the values of its weights."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.surgery.structure.recognition import find_stacks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

HALF_PRECISION = (torch.float16, torch.bfloat16)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Compute in float32 for the duration of the ``with``; a float32 model does not change.

    A block of a stack is converted while it runs, everything else at once: the memory that this
    needs is that of the weights outside the stacks and of one block.
    """
    blocks = [block for _, stack in find_stacks(model) for block in stack]
    inside = {id(weight) for block in blocks for weight in _half_tensors(block)}
    with ExitStack() as undo:
        undo.enter_context(_Converted([w for w in _half_tensors(model) if id(w) not in inside]))
        for block in blocks:
            converted = _Converted(_half_tensors(block))
            undo.callback(block.register_forward_pre_hook(converted.enter).remove)
            # Also after an exception: the weights must not stay converted.
            hook = block.register_forward_hook(converted.leave, always_call=True)
            undo.callback(hook.remove)
        yield


def _half_tensors(module: nn.Module) -> list[torch.Tensor]:
    """Return the parameters and buffers in half precision."""
    tensors: Iterable[torch.Tensor] = (*module.parameters(), *module.buffers())
    return [tensor for tensor in tensors if tensor.dtype in HALF_PRECISION]


class _Converted:
    """Tensors in float32; on exit they have their memory and dtype of before."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._tensors = list(tensors)
        self._before: list[torch.Tensor] = []

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *_: object) -> None:
        self.leave()

    def enter(self, *_: Any) -> None:
        self._before = [tensor.data for tensor in self._tensors]
        for tensor in self._tensors:
            tensor.data = tensor.data.float()

    def leave(self, *_: Any) -> None:
        for tensor, data in zip(self._tensors, self._before, strict=False):
            tensor.data = data
        self._before = []
