"""The training loop of projector training and of recovery."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from effllava_optuna.training.steps import training_steps, unfrozen

if TYPE_CHECKING:
    from collections.abc import Callable

HALF_AND_SINGLE = (torch.float16, torch.float32)


def train(
    weight: nn.Parameter,
    backward: Callable[[int, float], None],
    *,
    steps: int,
    learning_rate: float,
) -> None:
    """Train one weight of a model of its dtype."""
    for _ in training_steps(
        [weight],
        backward,
        steps=steps,
        every=steps,
        learning_rate=learning_rate,
        dtype=weight.dtype,
    ):
        pass


@pytest.mark.parametrize(
    ("steps", "every", "scored"),
    [(6, 2, [2, 4, 6]), (6, 4, [4, 6]), (2, 4, [2]), (0, 4, [])],
)
def test_held_out_samples_are_scored_regularly_and_at_the_end(
    steps: int, every: int, scored: list[int]
) -> None:
    weight, taken = nn.Parameter(torch.ones(1)), list[int]()
    evaluated = training_steps(
        [weight],
        lambda step, _: taken.append(step),
        steps=steps,
        every=every,
        learning_rate=0.1,
        dtype=torch.float32,
    )
    assert [*evaluated] == scored
    assert taken == [*range(1, steps + 1)]
    assert weight.item() == 1.0  # a step without a gradient changes nothing


def test_gradients_do_not_accumulate_over_steps_and_none_remain() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.requires_grad_(requires_grad=False)
    gradients = []

    def backward(step: int, _: float) -> None:
        torch.autograd.backward(module.weight.sum() * step)
        assert module.weight.grad is not None
        gradients.append(module.weight.grad.item())

    with unfrozen(module):
        for step in training_steps(
            module.parameters(),
            backward,
            steps=9,
            every=1,
            learning_rate=0.1,
            dtype=torch.float32,
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

    def backward(_: int, scale: float) -> None:
        torch.autograd.backward((weight * 1e-4).sum() * scale)

    train(weight, backward, steps=100, learning_rate=2e-4)
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
        [ours],
        lambda _step, _scale: backward(ours),
        steps=5,
        every=1,
        learning_rate=0.01,
        dtype=torch.float32,
    ):
        optimizer.zero_grad()
        backward(theirs)
        optimizer.step()
        assert torch.equal(ours, theirs)


def test_gradients_below_the_smallest_number_of_float16_count() -> None:
    """Of hidden states, such as those that a projector computes for a large decoder."""
    half, single = (nn.Parameter(torch.ones(4, dtype=each)) for each in HALF_AND_SINGLE)
    for weight in (half, single):

        def backward(_: int, scale: float, weight: nn.Parameter = weight) -> None:
            hidden = weight * 1.0
            torch.autograd.backward((hidden.float() * 2e-8).sum() * scale)

        train(weight, backward, steps=4, learning_rate=0.1)
    torch.testing.assert_close(half.detach(), single.detach().half(), rtol=0.0, atol=2e-3)
    assert half.max() < 0.8


@pytest.mark.parametrize("first", [200.0, 1e6])
def test_a_step_that_overflows_is_repeated_with_a_smaller_scale(first: float) -> None:
    weight, scales = nn.Parameter(torch.ones(1, dtype=torch.float16)), list[tuple[int, float]]()

    def backward(step: int, scale: float) -> None:
        scales.append((step, scale))
        hidden = weight * 1.0
        torch.autograd.backward((hidden.float() * (first if step == 1 else 1.0)).sum() * scale)

    train(weight, backward, steps=2, learning_rate=0.1)
    if first == 200.0:  # 256 * 200 is less than 65,504
        assert scales == [(1, 1024.0), (1, 256.0), (2, 256.0)]
        assert weight.item() == pytest.approx(0.8, abs=0.05)
    else:  # no scale helps: NaN is a fault of the model, which held-out samples show
        assert scales == [(1, 4.0**power) for power in range(5, -1, -1)] + [(2, 1.0)]
        assert not torch.isfinite(weight).all()
