"""Slow, readable twins: one sample and one token at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.policy import SiteId
    from effllava_optuna.surgery import Handle, Loaded
    from effllava_optuna.tasks import Batch

    Array = np.ndarray[Any, np.dtype[np.float64]]
    Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class Told:
    """Inputs of one site, token by token, and gradients there, sample by sample.

    Attributes:
        x: Shape ``(tokens, columns)``.
        margin: The gradient of the answer margin, of the same shape.
        loss: The gradient of the loss.
        text: Shape ``(tokens,)``: 1 where the token stands for no picture.
        sample: Shape ``(tokens,)``: which sample the token belongs to.
    """

    x: Array
    margin: Array
    loss: Array
    text: Array
    sample: Array

    def effect(self, units: Integers, *, goal: str) -> Array:
        """Give the squared first-order changes of ``goal``, summed over samples, by unit."""
        gradient = self.margin if goal == "margin" else self.loss
        change = np.zeros(len(units))
        for sample in range(int(self.sample.max()) + 1):
            here = self.sample == sample
            slopes = (self.x[here] * gradient[here]).sum(0)
            change += slopes[units].sum(1) ** 2
        return change


def margin(loaded: Loaded, single: Batch, *, targets: bool = True) -> torch.Tensor:
    """Give how far the likeliest answer of one sample is ahead of the next."""
    logits = loaded.model(**single.inputs).logits[0, -1]
    if targets:
        logits = logits[options(single)]
    first, second, *_ = logits.sort(descending=True).values
    margin: torch.Tensor = first - second
    return margin


def loss(loaded: Loaded, single: Batch) -> torch.Tensor:
    """Give how surprised one sample's answer leaves the model, in nats."""
    assert single.answers is not None
    logits = loaded.model(**single.inputs).logits[0, -1][options(single)]
    surprise: torch.Tensor = logits.logsumexp(0) - logits[single.answers[0]]
    return surprise


def options(single: Batch) -> torch.Tensor:
    """Give the tokens that may answer one closed question."""
    assert single.targets is not None
    return single.targets[0]


def units_of(handle: Handle) -> Integers:
    """Give the columns of each unit, shape ``(width, columns)``."""
    return np.arange(handle.site.width * handle.columns).reshape(handle.site.width, -1)


def told(
    loaded: Loaded, handles: Sequence[Handle], singles: Sequence[Batch]
) -> dict[SiteId, Told]:
    """Ask each sample alone, unpadded."""
    found = {}
    for handle in handles:
        rows: list[tuple[Array, Array, Array, float, float]] = []
        for number, single in enumerate(singles):
            seen = []
            for goal in (margin, loss):
                caught: list[torch.Tensor] = []
                hook = handle.linear(handle.output).register_forward_pre_hook(
                    lambda _, inputs, caught=caught: caught.append(inputs[0].requires_grad_())
                )
                value = goal(loaded, single)
                hook.remove()
                gradient = torch.autograd.grad(value, caught[0])[0][0]
                seen.append((caught[0][0].detach().double().numpy(), gradient.double().numpy()))
            ids = single.inputs["input_ids"][0]
            for at, token in enumerate(ids):
                text = float(token != loaded.model.config.image_token_id)
                rows.append((seen[0][0][at], seen[0][1][at], seen[1][1][at], text, float(number)))
        found[handle.site.id] = Told(*(np.array(column) for column in zip(*rows, strict=True)))
    return found
