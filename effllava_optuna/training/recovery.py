"""Recover a pruned model before its export: distil the dense model into it.

The loss is the KL divergence from the dense model at the answer positions; labels are not read.
Every fifth group of samples is held out. The weights with the smallest divergence there are kept,
which may be those before the training. This choice is only as good as the held-out samples: of 64
samples a dozen are held out, which on the embedded model accepted recoveries that reduced the
accuracy. Use a thousand samples or more.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from effllava_optuna.surgery import answer_logits
from effllava_optuna.tasks import answer_divergence
from effllava_optuna.training.adaptation import LoraAdaptation
from effllava_optuna.training.distillation_set import distillation_set
from effllava_optuna.training.steps import training_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Sample
    from effllava_optuna.training.adaptation import Adaptation
    from effllava_optuna.training.distillation_set import DistillationBatch, DistillationSet


@dataclass(frozen=True, slots=True)
class DistillationOptions:
    """How the dense model is distilled into a pruned one.

    Attributes:
        steps: Largest number of steps.
        every: Steps between two evaluations on held-out samples.
        patience: Number of evaluations without an improvement after which training ends.
        batch_size: Samples in each step.
        learning_rate: Learning rate of AdamW, constant.
        seed: Seed of the order of samples and of the initial adapters.
    """

    steps: int = 300
    every: int = 25
    patience: int = 4
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """The result of a recovery.

    Attributes:
        steps: The chosen number of steps; 0 leaves the model unchanged.
        before: Mean divergence from the dense model on held-out samples, in nats.
        after: The same for the recovered model, its adapters merged.
        held_out: Steps and held-out divergence of each evaluation, from step 0 up.
        samples: Number of training samples, without the held-out ones.
        weights: Number of trained weights.
        seconds: Duration.
    """

    steps: int
    before: float
    after: float
    held_out: tuple[tuple[int, float], ...]
    samples: int
    weights: int
    seconds: float


def recover(
    pruned: LoadedModel,
    dense: LoadedModel,
    samples: Sequence[Sample],
    adaptation: Adaptation | None = None,
    options: DistillationOptions | None = None,
    progress: Callable[[float], None] | None = None,
) -> RecoveryResult:
    """Distil the outputs of ``dense`` into ``pruned``, which is changed in place.

    Args:
        pruned: A result of `sliced` or `load_pruned`.
        dense: The model that it was pruned from; not changed.
        samples: Samples of a proxy split, for training and for the held-out divergence.
        adaptation: Which weights are trained; LoRA adapters by default.
        options: Steps, learning rate and seed.
        progress: Called with the finished fraction: of the dense model's answers, then of the
            steps.

    Raises:
        LeakError: A sample belongs to validation or test.
        TaskError: The samples have fewer than two groups.
        ModelError: The vocabularies of the two models differ, or peft is missing.
    """
    options = options or DistillationOptions()
    forward = len(samples)  # a step reads its samples forward, and twice as much backward
    share = forward / (forward + 3 * options.steps * options.batch_size)

    def answering(fraction: float) -> None:
        if progress is not None:
            progress(share * fraction)

    def training(fraction: float) -> None:
        if progress is not None:
            progress(share + (1 - share) * fraction)

    started = time.monotonic()
    answered = distillation_set(
        pruned, dense, samples, options.batch_size, options.seed, answering
    )
    result = distil(pruned, answered, adaptation, options, training)
    return replace(result, seconds=round(time.monotonic() - started, 3))


def distil(
    pruned: LoadedModel,
    answered: DistillationSet,
    adaptation: Adaptation | None = None,
    options: DistillationOptions | None = None,
    progress: Callable[[float], None] | None = None,
) -> RecoveryResult:
    """Distil what the dense model has answered into ``pruned``, which is changed in place.

    Args:
        pruned: The model of the set, or a copy of it.
        answered: A result of `distillation_set`.
        adaptation: Which weights are trained; LoRA adapters by default.
        options: Steps and learning rate; the seed is that of the order and of the adapters.
        progress: Called after each step with the finished fraction.

    Raises:
        ModelError: peft is missing.
    """
    started = time.monotonic()
    options = options or DistillationOptions()
    adaptation = adaptation or LoraAdaptation()
    held_out = answered.held_out
    with pruned.lock:
        curve = [(0, _mean_divergence(pruned, held_out))]
        shuffled = _shuffle_forever(answered.train, options.seed)
        dtype = pruned.model.dtype  # adapters are in float32

        def backward(step: int, scale: float) -> None:
            _backward(pruned, next(shuffled), scale)
            if progress is not None:
                progress(step / options.steps)

        with adaptation.trainable_weights(pruned, options.seed) as weights, torch.enable_grad():
            best = [weight.detach().clone() for weight in weights]
            for step in training_steps(
                weights,
                backward,
                steps=options.steps,
                every=options.every,
                learning_rate=options.learning_rate,
                dtype=dtype,
            ):
                curve.append((step, _mean_divergence(pruned, held_out)))
                evaluations_since_best = len(curve) - 1 - _best_index(curve)
                if evaluations_since_best == 0:
                    best = [weight.detach().clone() for weight in weights]
                elif evaluations_since_best >= options.patience:
                    break
            for weight, best_weight in zip(weights, best, strict=True):
                weight.data.copy_(best_weight)
        after = _mean_divergence(pruned, held_out)
    return RecoveryResult(
        steps=curve[_best_index(curve)][0],
        before=curve[0][1],
        after=after,
        held_out=tuple(curve),
        samples=answered.samples,
        weights=sum(weight.numel() for weight in best),
        seconds=round(time.monotonic() - started, 3),
    )


def _shuffle_forever(
    steps: Sequence[Sequence[DistillationBatch]], seed: int
) -> Iterator[Sequence[DistillationBatch]]:
    """Yield the batches of all steps in random order, again and again."""
    rng = np.random.default_rng(seed)
    while True:
        yield from (steps[index] for index in reversed(rng.permutation(len(steps))))


def _best_index(curve: Sequence[tuple[int, float]]) -> int:
    """Return the first index of the smallest divergence; NaN and infinity are never smallest."""
    divergences = [divergence if np.isfinite(divergence) else np.inf for _, divergence in curve]
    return divergences.index(min(divergences))


def _divergences(pruned: LoadedModel, batch: DistillationBatch) -> torch.Tensor:
    """Compute the divergence from the dense model in nats, shape ``(samples,)``."""
    device = pruned.device
    logits = answer_logits(pruned, batch.inputs.to(device))
    return answer_divergence(logits, batch.dense.to(device), batch.batch.to(device))


def _backward(pruned: LoadedModel, batches: Sequence[DistillationBatch], scale: float) -> None:
    """Add the scaled gradients of the mean divergence over the samples of a step."""
    samples = sum(len(batch.dense) for batch in batches)
    for batch in batches:
        loss = _divergences(pruned, batch).mean() * (scale * len(batch.dense) / samples)
        if loss.requires_grad:  # false for a projector if the batch has no pictures
            torch.autograd.backward(loss)


@torch.no_grad()
def _mean_divergence(pruned: LoadedModel, batches: Sequence[DistillationBatch]) -> float:
    """Compute the mean divergence from the dense model over all samples, in nats."""
    total = sum(float(_divergences(pruned, batch).sum()) for batch in batches)
    return total / sum(len(batch.dense) for batch in batches)
