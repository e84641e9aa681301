"""One training loop for projectors and recoveries."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from effllava_optuna.hooks.steps import trainable, training_steps


@pytest.mark.parametrize(
    ("steps", "every", "scored"),
    [(6, 2, [2, 4, 6]), (6, 4, [4, 6]), (2, 4, [2]), (0, 4, [])],
)
def test_held_out_samples_are_scored_now_and_then_and_at_the_end(
    steps: int, every: int, scored: list[int]
) -> None:
    weight, done = nn.Parameter(torch.ones(1)), list[float]()
    found = training_steps(
        [weight],
        lambda _: None,
        steps=steps,
        every=every,
        learning_rate=0.1,
        progress=done.append,
    )
    assert [*found] == scored
    assert done == [step / steps for step in range(1, steps + 1)]
    assert weight.item() == 1.0  # a step without a gradient changes nothing


def test_gradients_do_not_add_up_over_steps_and_none_stay() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.requires_grad_(requires_grad=False)
    gradients = []

    def backward(step: int) -> None:
        torch.autograd.backward(module.weight.sum() * step)
        assert module.weight.grad is not None
        gradients.append(module.weight.grad.item())

    with trainable(module):
        for step in training_steps(
            module.parameters(), backward, steps=9, every=1, learning_rate=0.1
        ):
            if step == 3:
                break
    assert gradients == [1.0, 2.0, 3.0]
    assert module.weight.grad is None
    assert not module.weight.requires_grad
