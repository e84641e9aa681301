"""Slow, readable reference implementations: one sample and one token at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery import ComponentHandle, LoadedModel
    from effllava_optuna.tasks import Batch

    Array = np.ndarray[Any, np.dtype[np.float64]]
    Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class ReferenceObservation:
    """Inputs and gradients of the output matrix of one component, token by token.

    Attributes:
        x: The inputs, shape ``(tokens, columns)``.
        margin: Gradients of the answer margin, of the same shape.
        loss: Gradients of the loss, of the same shape.
        text: Shape ``(tokens,)``: 1 if the token is not an image token.
        sample: Shape ``(tokens,)``: the sample of the token.
    """

    x: Array
    margin: Array
    loss: Array
    text: Array
    sample: Array

    def effect(self, units: Integers, *, goal: str) -> Array:
        """Sum over samples the squared first-order changes of ``goal`` without each unit."""
        gradient = self.margin if goal == "margin" else self.loss
        effect = np.zeros(len(units))
        for sample in range(int(self.sample.max()) + 1):
            tokens = self.sample == sample
            changes = (self.x[tokens] * gradient[tokens]).sum(0)
            effect += changes[units].sum(1) ** 2
        return effect


def margin(loaded: LoadedModel, single: Batch, *, targets: bool = True) -> torch.Tensor:
    """Compute the logit of the likeliest answer of one sample minus that of the next."""
    logits = loaded.model(**single.inputs).logits[0, -1]
    if targets:
        logits = logits[answer_tokens(single)]
    first, second, *_ = logits.sort(descending=True).values
    margin: torch.Tensor = first - second
    return margin


def loss(loaded: LoadedModel, single: Batch) -> torch.Tensor:
    """Compute the cross-entropy of the answer of one sample, in nats."""
    assert single.answers is not None
    logits = loaded.model(**single.inputs).logits[0, -1][answer_tokens(single)]
    cross_entropy: torch.Tensor = logits.logsumexp(0) - logits[single.answers[0]]
    return cross_entropy


def answer_tokens(single: Batch) -> torch.Tensor:
    """Return the tokens among which one closed question is answered."""
    assert single.targets is not None
    return single.targets[0]


def unit_columns(handle: ComponentHandle) -> Integers:
    """Return the columns of each unit, shape ``(width, columns)``."""
    return np.arange(handle.component.width * handle.columns).reshape(handle.component.width, -1)


def observe_each_sample(
    loaded: LoadedModel, handles: Sequence[ComponentHandle], singles: Sequence[Batch]
) -> dict[ComponentId, ReferenceObservation]:
    """Run each sample alone, without padding, forward and backward."""
    observations = {}
    for handle in handles:
        rows: list[tuple[Array, Array, Array, float, float]] = []
        for number, single in enumerate(singles):
            inputs, margin_gradients = _inputs_and_gradients(loaded, handle, single, margin)
            _, loss_gradients = _inputs_and_gradients(loaded, handle, single, loss)
            for at, token in enumerate(single.inputs["input_ids"][0]):
                text = float(token != loaded.model.config.image_token_id)
                rows.append(
                    (inputs[at], margin_gradients[at], loss_gradients[at], text, float(number))
                )
        columns = (np.array(column) for column in zip(*rows, strict=True))
        observations[handle.component.id] = ReferenceObservation(*columns)
    return observations


def _inputs_and_gradients(
    loaded: LoadedModel,
    handle: ComponentHandle,
    single: Batch,
    goal: Callable[[LoadedModel, Batch], torch.Tensor],
) -> tuple[Array, Array]:
    """Return the inputs of the output matrix and the gradients of ``goal``, token by token."""
    captured: list[torch.Tensor] = []
    hook = handle.linear(handle.output).register_forward_pre_hook(
        lambda _, inputs: captured.append(inputs[0].requires_grad_())
    )
    value = goal(loaded, single)
    hook.remove()
    gradient = torch.autograd.grad(value, captured[0])[0][0]
    return captured[0][0].detach().double().numpy(), gradient.double().numpy()
