"""The training loop of projector training and of recovery."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from effllava_optuna.training.steps import training_steps, unfrozen


@pytest.mark.parametrize(
    ("steps", "every", "scored"),
    [(6, 2, [2, 4, 6]), (6, 4, [4, 6]), (2, 4, [2]), (0, 4, [])],
)
def test_held_out_samples_are_scored_regularly_and_at_the_end(
    steps: int, every: int, scored: list[int]
) -> None:
    weight, progress = nn.Parameter(torch.ones(1)), list[float]()
    evaluated = training_steps(
        [weight],
        lambda _: None,
        steps=steps,
        every=every,
        learning_rate=0.1,
        progress=progress.append,
    )
    assert [*evaluated] == scored
    assert progress == [step / steps for step in range(1, steps + 1)]
    assert weight.item() == 1.0  # a step without a gradient changes nothing


def test_gradients_do_not_accumulate_over_steps_and_none_remain() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.requires_grad_(requires_grad=False)
    gradients = []

    def backward(step: int) -> None:
        torch.autograd.backward(module.weight.sum() * step)
        assert module.weight.grad is not None
        gradients.append(module.weight.grad.item())

    with unfrozen(module):
        for step in training_steps(
            module.parameters(), backward, steps=9, every=1, learning_rate=0.1
        ):
            if step == 3:
                break
    assert gradients == [1.0, 2.0, 3.0]
    assert module.weight.grad is None
    assert not module.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_small_gradients_and_steps_count_in_every_precision(dtype: torch.dtype) -> None:
    """AdamW in float16 would divide by 0; in bfloat16 no step would change the weight."""
    weight = nn.Parameter(torch.ones(4, dtype=dtype))

    def backward(_: int) -> None:
        torch.autograd.backward((weight * 1e-4).sum())

    for _ in training_steps([weight], backward, steps=100, every=100, learning_rate=2e-4):
        pass
    assert weight.dtype == dtype
    resolution = torch.finfo(dtype).eps
    torch.testing.assert_close(
        weight.detach().float(), torch.full((4,), 0.98), rtol=0.0, atol=1e-4 + resolution / 2
    )


def test_weights_in_float32_are_stepped_as_by_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    start, inputs = (torch.randn(rows, 5, generator=generator) for rows in (3, 7))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())

    def backward(weight: nn.Parameter) -> None:
        torch.autograd.backward((inputs @ weight.T).pow(2).mean())

    optimizer = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.0)
    for _ in training_steps(
        [ours], lambda _: backward(ours), steps=5, every=1, learning_rate=0.01
    ):
        optimizer.zero_grad()
        backward(theirs)
        optimizer.step()
        assert torch.equal(ours, theirs)
