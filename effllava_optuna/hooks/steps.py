"""The training loop: what trains the projector between epochs, and a model after its export."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import nn


@contextmanager
def trainable(module: nn.Module) -> Iterator[None]:
    """Let the weights of ``module`` be trained within the context; no gradients stay."""
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
    """Train ``weights`` by AdamW at a constant rate, without weight decay.

    Yields how many steps were taken whenever held-out samples should be scored: every ``every``
    steps, and after the last one. Training ends early where the iteration does.

    Args:
        weights: What to train.
        backward: Adds the gradients of a step, numbered from 1.
        steps: Most steps.
        every: Steps between two scores.
        learning_rate: Of AdamW.
        progress: Called after each step with the share of ``steps`` that is done.
    """
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        backward(step)
        optimizer.step()
        if progress is not None:
            progress(step / steps)
        if step % every == 0 or step == steps:
            yield step
