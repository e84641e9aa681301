"""The training loop of projector training and of recovery."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

# Of losses in float16, which has no numbers between 0 and 6e-8.
_LARGEST_SCALE, _SCALE_FACTOR = 1024.0, 4.0


@contextmanager
def unfrozen(module: nn.Module) -> Iterator[None]:
    """Enable gradients for the weights of ``module`` in the context; delete them at the end."""
    module.requires_grad_(requires_grad=True)
    try:
        yield
    finally:
        module.requires_grad_(requires_grad=False)
        module.zero_grad(set_to_none=True)


def training_steps(
    weights: Iterable[nn.Parameter],
    backward: Callable[[int, float], None],
    *,
    steps: int,
    every: int,
    learning_rate: float,
    dtype: torch.dtype,
) -> Iterator[int]:
    """Train ``weights`` with AdamW at a constant learning rate, without weight decay.

    Weights in half precision are copies of weights in float32, which the steps change: AdamW
    divides by 0 in float16, and a step is less than the resolution of bfloat16. If the model
    computes in float16, losses are scaled (Micikevicius et al. 2018, section 3.2), because
    gradients of a large model are less than its smallest numbers.

    Yields the number of steps taken when held-out samples should be evaluated: after every
    ``every`` steps, and after the last one. Stop the iteration to end the training early.

    Args:
        weights: The weights to train.
        backward: Called with the number of the step, from 1, and with the scale of its losses;
            adds their gradients. Called again with a smaller scale if they overflow in float16.
        steps: Largest number of steps.
        every: Steps between two evaluations.
        learning_rate: Learning rate of AdamW.
        dtype: What the model computes in.
    """
    trained = [*weights]
    masters = [
        weight if weight.dtype.itemsize >= 4 else nn.Parameter(weight.detach().float())
        for weight in trained
    ]
    copies = [each for each in zip(trained, masters, strict=True) if each[0] is not each[1]]
    optimizer = torch.optim.AdamW(masters, lr=learning_rate, weight_decay=0.0)
    scale = _LARGEST_SCALE if dtype == torch.float16 else 1.0
    for step in range(1, steps + 1):
        scale = _add_gradients(trained, partial(backward, step), scale)
        for weight, master in zip(trained, masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float() / scale
        optimizer.step()
        for weight, master in copies:
            weight.data.copy_(master)
        if step % every == 0 or step == steps:
            yield step


def _add_gradients(
    weights: Sequence[nn.Parameter], backward: Callable[[float], None], scale: float
) -> float:
    """Replace the gradients of ``weights``; return the scale with which they do not overflow."""
    while True:
        for weight in weights:
            weight.grad = None
        backward(scale)
        if scale == 1.0 or _are_finite(weight.grad for weight in weights):
            return scale
        scale /= _SCALE_FACTOR


def _are_finite(gradients: Iterable[torch.Tensor | None]) -> bool:
    return all(each is None or bool(torch.isfinite(each).all()) for each in gradients)
