"""Agreement of a network with the dense model, where the answers of the dense model are predicted.

A label has one token for each position; the dense model has a distribution. The Kullback-Leibler
divergence from it is the smoothest score of a pruned network that needs no labels (Bercovich et
al. 2024, Puzzle, compare both as scores of blocks).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.prompts.batch import IGNORE_INDEX
from effllava_optuna.tasks.scoring.scores import target_logits

if TYPE_CHECKING:
    from effllava_optuna.tasks.prompts.batch import Batch


@dataclass(frozen=True, slots=True)
class DenseOutputs:
    """What the dense model predicts where the answers of a batch are predicted.

    Attributes:
        places: Shape ``(predictions,)``: which entries of a flattened matrix of shape
            ``(samples, positions)``.
        log_probabilities: Shape ``(predictions, classes)``, float32. Classes are the options of a
            closed question, or the vocabulary.
    """

    places: torch.Tensor
    log_probabilities: torch.Tensor

    def to(self, device: torch.device | str) -> DenseOutputs:
        """Copy the tensors to ``device``."""
        return replace(
            self,
            places=self.places.to(device),
            log_probabilities=self.log_probabilities.to(device),
        )


def dense_outputs(logits: torch.Tensor, batch: Batch) -> DenseOutputs:
    """Select what `score_agreement` needs of the logits of the dense model.

    Args:
        logits: Shape ``(samples, positions, vocabulary)``.
        batch: A batch with the answers of the dense model.

    Raises:
        TaskError: The batch has no answers.
    """
    if batch.answers is None:
        raise TaskError(
            "These prompts have no answers to compare.", hint="Use `encode_with_answers`."
        )
    predicted = (batch.answers != IGNORE_INDEX).flatten()
    places = predicted.nonzero()[:, 0].to(logits.device)
    return DenseOutputs(places, _log_probabilities(logits, batch, places))


def count_outputs(batch: Batch, vocabulary: int) -> int:
    """Count the log-probabilities that `dense_outputs` keeps of a batch."""
    if batch.targets is not None:
        return batch.targets.numel()
    return 0 if batch.answers is None else int((batch.answers != IGNORE_INDEX).sum()) * vocabulary


def score_agreement(logits: torch.Tensor, batch: Batch, dense: DenseOutputs) -> torch.Tensor:
    """Score logits on their device by what the dense model predicts.

    A hit is the fraction of the positions whose most likely token (or option) is that of the
    dense model. The log-probability is minus the mean of the
    divergence from the dense model over the positions, in nats; of the dense model itself it is
    0. NaN counts as no agreement.

    Args:
        logits: Shape ``(samples, positions, vocabulary)``.
        batch: The batch of ``dense``.
        dense: The result of `dense_outputs`.

    Returns:
        Shape ``(2, samples)``, float64: hits, and log-probabilities.
    """
    actual, expected = _log_probabilities(logits, batch, dense.places), dense.log_probabilities
    # An option that a sample does not have, or a token of probability 0, adds nothing.
    terms = expected.exp() * (expected - actual)
    divergence = terms.masked_fill(expected.isneginf(), 0.0).double().sum(-1).clamp(min=0.0)
    agree = (actual.argmax(-1) == expected.argmax(-1)) & ~divergence.isnan()
    shape = (len(logits), batch.positions)
    counts = _spread(torch.ones_like(divergence), dense.places, shape).sum(1)
    hits = _spread(agree.double(), dense.places, shape).sum(1) / counts
    log_probability = -_spread(divergence, dense.places, shape).sum(1) / counts
    return torch.stack([hits, log_probability.masked_fill(log_probability.isnan(), float("-inf"))])


def _log_probabilities(logits: torch.Tensor, batch: Batch, places: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities of the options, or of all tokens, shape ``(predictions, ...)``."""
    if batch.targets is not None:
        return target_logits(logits, batch.targets).log_softmax(-1)
    return logits[:, -batch.positions :].flatten(0, 1)[places].float().log_softmax(-1)


def _spread(values: torch.Tensor, places: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Return a matrix with ``values`` at ``places`` and zeros elsewhere."""
    matrix = values.new_zeros(shape[0] * shape[1])
    matrix[places] = values
    return matrix.view(shape)
