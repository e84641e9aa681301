"""Scores of a policy: encoded batches of samples, and the scores of a network on them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.surgery import (
    FULL_FIT,
    answer_logits,
    encode_images,
    generate_text,
    policy_network,
    reduced_processors,
)
from effllava_optuna.tasks import (
    Scores,
    divide_samples,
    encode_prompts,
    encode_with_answers,
    grade_answers,
    score_agreement,
    score_on_device,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from effllava_optuna.policy import Policy
    from effllava_optuna.surgery import EncodedInputs, LoadedModel, WeightState
    from effllava_optuna.tasks import Batch, DenseOutputs, Sample


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """A batch of samples whose pictures have been through the vision tower.

    Attributes:
        batch: Tokenised samples; without answers, the model generates them.
        seen: Model inputs, pictures encoded up to the projector.
        fit: Which compensation table and projector of a weight state scores the batch.
        dense: What the dense model predicts; then networks are scored by their agreement with it.
    """

    batch: Batch
    seen: EncodedInputs
    fit: int = FULL_FIT
    dense: DenseOutputs | None = None

    @property
    def nbytes(self) -> int:
        """Count the bytes of the tensors; those that share memory are counted once."""
        tensors = [*self.batch.inputs.values(), *self.seen.tensors]
        return sum(
            {tensor.data_ptr(): tensor.nbytes for tensor in tensors if tensor.numel()}.values()
        )

    def rows(self, samples: Sequence[Sample]) -> EncodedBatch | None:
        """Select ``samples`` of the batch without encoding them again, for training.

        Returns:
            None if pictures and samples do not correspond one to one (several tiles for each
            picture, or a vision tower that is pruned), so that rows cannot be selected.
        """
        row_of = {sample.id: row for row, sample in enumerate(self.batch.samples)}
        rows = torch.tensor([row_of[sample.id] for sample in samples])
        seen = self.seen.select(rows)
        return None if seen is None else EncodedBatch(self.batch.select(rows), seen, self.fit)


def split_folds(samples: Sequence[Sample], folds: int) -> tuple[tuple[Sample, ...], ...]:
    """Split ``samples`` into folds, whole groups at a time, in order of appearance."""
    groups = list(dict.fromkeys(sample.group for sample in samples))
    fold_of = {group: index % folds for index, group in enumerate(groups)}
    return tuple(
        tuple(sample for sample in samples if fold_of[sample.group] == fold)
        for fold in range(folds)
    )


def encode_samples(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    *,
    batch_size: int = 64,
    fit: int = FULL_FIT,
    generate: bool = False,
    device: str | torch.device | None = None,
) -> tuple[EncodedBatch, ...]:
    """Tokenise ``samples`` and run the vision tower on their pictures, once.

    Args:
        loaded: The model.
        samples: Samples of any kind.
        batch_size: Largest number of samples in a batch.
        fit: Which compensation table and projector of a weight state scores the samples.
        generate: Whether the model generates the answers of open questions, which are then
            graded by their rules. If False, the likelihood of a right answer is scored. Closed
            questions are always scored by comparing their options.
        device: Where the tensors are stored; None: on the device of the model.

    Raises:
        TaskError: A sample cannot be encoded, or does not fit into the context of the model.
    """
    parts = divide_for_scoring(loaded.processor, samples, batch_size, generate=generate)
    return tuple(
        encode_batch(loaded, members, fit=fit, generate=generate, device=device)
        for members in parts
    )


def divide_for_scoring(
    processor: Any, samples: Sequence[Sample], batch_size: int = 64, *, generate: bool
) -> list[list[Sample]]:
    """Divide samples into the batches of `encode_samples`, without encoding them."""
    generated = [sample for sample in samples if generate and sample.is_open_ended]
    scored = [sample for sample in samples if not (generate and sample.is_open_ended)]
    parts: list[list[Sample]] = []
    if scored or not generated:
        parts += divide_samples(processor, scored, batch_size=batch_size, answers=True)
    if generated:
        parts += divide_samples(processor, generated, batch_size=batch_size, answers=False)
    return parts


def encode_batch(
    loaded: LoadedModel,
    members: Sequence[Sample],
    *,
    fit: int = FULL_FIT,
    generate: bool = False,
    device: str | torch.device | None = None,
) -> EncodedBatch:
    """Encode one of the parts of `divide_for_scoring`; see `encode_samples`."""
    where = loaded.device if device is None else device
    encode = encode_prompts if generate and members[0].is_open_ended else encode_with_answers

    def batch_for(processor: Any) -> Batch:
        (batch,) = encode(processor, members, batch_size=len(members), context=loaded.context)
        return batch

    batch = batch_for(loaded.processor)
    fewer = {
        ratio: batch_for(processor).inputs
        for ratio, processor in reduced_processors(loaded).items()
    }
    seen = encode_images(loaded, batch.inputs, batch.positions, fewer).to(where)
    return EncodedBatch(batch.to(where), seen, fit)


def tracked(
    batches: Iterable[EncodedBatch], total: int, progress: Callable[[float], None]
) -> Iterator[EncodedBatch]:
    """Yield batches of ``total`` samples, and report the share that has been asked for before."""
    done = 0
    for encoded in batches:
        progress(done / total)
        yield encoded
        done += len(encoded.batch.samples)


@torch.inference_mode()
def score_policy(
    loaded: LoadedModel,
    weight_state: WeightState,
    policy: Policy,
    batches: Iterable[EncodedBatch],
) -> Scores:
    """Score the network of ``policy``; scores are in the order of ``batches``.

    The host waits for the device once, at the end, unless answers are generated.
    """
    parts: list[torch.Tensor | Scores] = []
    for fit, group in groupby(batches, key=lambda encoded: encoded.fit):
        with policy_network(loaded, weight_state, policy, fit) as network:
            parts += [_score(network, encoded) for encoded in group]
    return _joined(parts)


def score_batch(network: LoadedModel, encoded: EncodedBatch) -> Scores:
    """Score a network on one batch."""
    return _joined([_score(network, encoded)])


def _score(network: LoadedModel, encoded: EncodedBatch) -> torch.Tensor | Scores:
    """Return scores by logits on their device, or the grades of generated answers."""
    batch, seen = encoded.batch.to(network.device), encoded.seen.to(network.device)
    if encoded.dense is not None:
        dense = encoded.dense.to(network.device)
        return score_agreement(answer_logits(network, seen), batch, dense)
    if batch.answers is not None:
        return score_on_device(answer_logits(network, seen), batch)
    return grade_answers(generate_text(network, seen, batch.new_tokens), batch.samples)


def _joined(parts: Sequence[torch.Tensor | Scores]) -> Scores:
    on_device = [part for part in parts if isinstance(part, torch.Tensor)]
    if len(on_device) == len(parts):
        return Scores.from_tensors(on_device)
    return Scores.concatenate(
        [Scores.from_tensors([part]) if isinstance(part, torch.Tensor) else part for part in parts]
    )


def samples_of(batches: Sequence[EncodedBatch]) -> list[Sample]:
    """Return the samples, in the order of `score_policy`."""
    return [sample for encoded in batches for sample in encoded.batch.samples]


def groups_of(batches: Sequence[EncodedBatch]) -> list[str]:
    """Return the group of each sample, in the order of `score_policy`."""
    return [sample.group for sample in samples_of(batches)]
