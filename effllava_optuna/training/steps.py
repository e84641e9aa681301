"""The training loop of projector training and of recovery."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


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
    backward: Callable[[int], None],
    *,
    steps: int,
    every: int,
    learning_rate: float,
    progress: Callable[[float], None] | None = None,
) -> Iterator[int]:
    """Train ``weights`` with AdamW at a constant learning rate, without weight decay.

    Weights in half precision are copies of weights in float32, which the steps change: AdamW
    divides by 0 in float16, and a step is less than the resolution of bfloat16.

    Yields the number of steps taken when held-out samples should be evaluated: after every
    ``every`` steps, and after the last one. Stop the iteration to end the training early.

    Args:
        weights: The weights to train.
        backward: Called with the number of the step, from 1; adds its gradients.
        steps: Largest number of steps.
        every: Steps between two evaluations.
        learning_rate: Learning rate of AdamW.
        progress: Called after each step with the finished fraction of ``steps``.
    """
    trained = [*weights]
    masters = [
        weight if weight.dtype.itemsize >= 4 else nn.Parameter(weight.detach().float())
        for weight in trained
    ]
    copies = [each for each in zip(trained, masters, strict=True) if each[0] is not each[1]]
    optimizer = torch.optim.AdamW(masters, lr=learning_rate, weight_decay=0.0)
    for step in range(1, steps + 1):
        for weight in trained:
            weight.grad = None
        backward(step)
        for weight, master in copies:
            master.grad = None if weight.grad is None else weight.grad.float()
        optimizer.step()
        for weight, master in copies:
            weight.data.copy_(master)
        if progress is not None:
            progress(step / steps)
        if step % every == 0 or step == steps:
            yield step
