"""The samples of a recovery, with what the dense model answers to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from effllava_optuna.errors import ModelError, TaskError
from effllava_optuna.surgery import answer_logits, encode_images, samples_per_backward
from effllava_optuna.tasks import encode_with_answers, require_proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from effllava_optuna.surgery import EncodedInputs, LoadedModel
    from effllava_optuna.tasks import Batch, Sample

_HELD_OUT_EVERY = 5  # groups


@dataclass(frozen=True, slots=True)
class DistillationBatch:
    """Samples of one step that a backward pass can read at once; tensors are on the CPU.

    Attributes:
        batch: The samples and the tokens of their answers, without inputs.
        inputs: What the pruned model reads of them.
        dense: Log-probabilities of the dense model, ``(samples, answer tokens, vocabulary)``.
    """

    batch: Batch
    inputs: EncodedInputs
    dense: torch.Tensor


@dataclass(frozen=True, slots=True)
class DistillationSet:
    """What a model is recovered from; it serves any number of copies of the pruned model.

    Attributes:
        train: The batches of each step.
        held_out: Batches that choose the number of steps, every fifth group of the samples.
    """

    train: tuple[tuple[DistillationBatch, ...], ...]
    held_out: tuple[DistillationBatch, ...]

    @property
    def samples(self) -> int:
        """Return the number of samples to train with."""
        return sum(len(batch.dense) for step in self.train for batch in step)


def distillation_set(
    pruned: LoadedModel,
    dense: LoadedModel,
    samples: Sequence[Sample],
    batch_size: int,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> DistillationSet:
    """Split samples by group, and answer them with the dense model.

    Args:
        pruned: A result of `sliced` or `load_pruned`.
        dense: The model that it was pruned from.
        samples: Samples of a proxy split.
        batch_size: Samples of each step.
        seed: Seed of the split and of the order.
        progress: Called after each batch with the finished fraction.

    Raises:
        LeakError: A sample belongs to validation or test.
        TaskError: The samples have fewer than two groups.
        ModelError: The vocabularies of the two models differ.
    """
    train, held_out = _split(require_proxy(samples, "Recovery"), seed)
    finished = 0

    def count(answered: int) -> None:
        nonlocal finished
        finished += answered
        if progress is not None:
            progress(finished / len(samples))

    with pruned.lock, dense.lock:
        steps, others = (
            _answered(pruned, dense, part, batch_size, count) for part in (train, held_out)
        )
    return DistillationSet(steps, tuple(batch for step in others for batch in step))


def _split(samples: Sequence[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """Shuffle the samples, and split them into training and held-out ones by group."""
    groups = list(dict.fromkeys(sample.group for sample in samples))
    if len(groups) < 2:
        raise TaskError(
            f"Recovery was given {len(samples)} samples of {len(groups)} groups.",
            hint="Use samples of at least two groups: one group is held out.",
        )
    rng = np.random.default_rng([seed, 0])
    held_out = {groups[index] for index in rng.permutation(len(groups))[::_HELD_OUT_EVERY]}
    shuffled = [samples[index] for index in rng.permutation(len(samples))]
    return (
        [sample for sample in shuffled if sample.group not in held_out],
        [sample for sample in shuffled if sample.group in held_out],
    )


@torch.no_grad()
def _answered(
    pruned: LoadedModel,
    dense: LoadedModel,
    samples: Sequence[Sample],
    batch_size: int,
    count: Callable[[int], None],
) -> tuple[tuple[DistillationBatch, ...], ...]:
    """Encode ``samples`` for ``pruned``, and compute the outputs of ``dense``, step by step."""
    steps = []
    for batch, whole in _encoded(pruned, dense, samples, batch_size):
        most = samples_per_backward(pruned, batch.inputs["input_ids"].shape[1])
        parts = [(batch, whole)]
        if len(batch) > most:
            parts = _encoded(pruned, dense, batch.samples, most)
        steps.append(tuple(_answered_batch(pruned, dense, *part) for part in parts))
        count(len(batch))
    return tuple(steps)


def _encoded(
    pruned: LoadedModel, dense: LoadedModel, samples: Sequence[Sample], batch_size: int
) -> list[tuple[Batch, Batch]]:
    """Encode samples for both models: ``pruned`` may read fewer image tokens."""
    both = (
        encode_with_answers(each.processor, samples, batch_size=batch_size, context=each.context)
        for each in (pruned, dense)
    )
    return [*zip(*both, strict=True)]


def _answered_batch(
    pruned: LoadedModel, dense: LoadedModel, batch: Batch, whole: Batch
) -> DistillationBatch:
    """Compute the outputs of ``dense`` on a batch.

    Args:
        pruned: The pruned model.
        dense: The dense model.
        batch: The batch for ``pruned``.
        whole: The same samples for ``dense``.
    """
    vocabulary = pruned.model.get_output_embeddings().weight.shape[0]
    dense_inputs = encode_images(dense, whole.inputs, whole.positions)
    logits = answer_logits(dense, dense_inputs).float()
    if logits.shape[-1] != vocabulary:
        raise ModelError(
            f"{dense.source} has a vocabulary of {logits.shape[-1]} tokens, {pruned.source} "
            f"one of {vocabulary}.",
            hint="Use the dense model that the checkpoint was pruned from.",
        )
    return DistillationBatch(
        replace(batch, inputs={}).to("cpu"),
        encode_images(pruned, batch.inputs, batch.positions).to("cpu"),
        logits.log_softmax(-1).to("cpu"),
    )
