"""Score answers: right or wrong, and how sure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.batches import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from effllava_optuna.tasks._task import Sample
    from effllava_optuna.tasks.batches import Batch


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model answered, sample by sample.

    Attributes:
        hit: Shape ``(samples,)``, in [0, 1]; of a closed question 1 where the likeliest answer is
            the right one, else 0.
        log_probability: Shape ``(samples,)``, <= 0; of a closed question that of the right answer
            among the possible ones. Of a written answer the logarithm of ``hit``.
    """

    hit: NDArray[np.float64]
    log_probability: NDArray[np.float64]

    @property
    def probability(self) -> NDArray[np.float64]:
        """Give the probability of the right answer, shape ``(samples,)``, in [0, 1]."""
        return np.exp(self.log_probability)

    @staticmethod
    def of(weighed: Sequence[torch.Tensor]) -> Scores:
        """Copy what was `weighed` to the host, at once."""
        hit, log_probability = torch.cat(list(weighed), dim=1).cpu().numpy()
        return Scores(hit, log_probability)

    @staticmethod
    def joined(parts: Sequence[Scores]) -> Scores:
        """Put scores one behind the other."""
        return Scores(
            np.concatenate([part.hit for part in parts]),
            np.concatenate([part.log_probability for part in parts]),
        )


def target_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Pick each possible answer's logit.

    Args:
        logits: Shape ``(samples, positions, vocabulary)``; the last position answers.
        targets: Shape ``(samples, targets)``, see `Batch`.

    Returns:
        Shape ``(samples, targets)``; minus infinity where a sample has fewer.
    """
    picked = logits[:, -1].float().gather(1, targets.clamp(min=0))
    return picked.masked_fill(targets < 0, float("-inf"))


def score(logits: torch.Tensor, batch: Batch) -> Scores:
    """Score the ``logits`` that answer, see `weighed`, and wait for the result."""
    return Scores.of([weighed(logits, batch)])


def weighed(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Score the ``logits`` that answer, where they are, without waiting for them.

    Of an open question, a hit is the share of the right answer's tokens that come first, and the
    log-probability is the mean over them: a proxy, however the answers will be graded.

    A model that answers NaN is wrong, and its probability is 0.

    Args:
        logits: Shape ``(samples, positions, vocabulary)``.
        batch: With answers.

    Returns:
        Shape ``(2, samples)``, float64: hits, and log-probabilities.
    """
    if batch.answers is None:
        raise TaskError("These prompts have no answers to score.", hint="Use `encode`.")
    if batch.targets is None:
        log_probabilities = logits[:, -batch.positions :].float().log_softmax(-1)
        real = batch.answers != IGNORED
        labels = batch.answers.clamp(min=0)
        count = real.sum(1).double()
        read = log_probabilities.gather(2, labels[..., None])[..., 0].masked_fill(~real, 0.0)
        right = read.double().sum(1) / count
        hit = ((log_probabilities.argmax(-1) == labels) & real).sum(1) / count
    else:
        log_probabilities = target_logits(logits, batch.targets).log_softmax(-1)
        hit = log_probabilities.argmax(-1) == batch.answers
        right = log_probabilities.gather(1, batch.answers[:, None])[:, 0]
    broken = right.isnan()
    return torch.stack(
        [
            hit.double().masked_fill(broken, 0.0),
            right.double().masked_fill(broken, float("-inf")),
        ]
    )


def answer_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Give how far the right answers are from certain, in nats, shape ``(samples,)``.

    Args:
        logits: Shape ``(samples, positions, vocabulary)``.
        batch: With answers.
    """
    if batch.answers is None:
        raise TaskError("These prompts have no answers to learn.", hint="Use `encode`.")
    if batch.targets is not None:
        found = target_logits(logits, batch.targets)
        return functional.cross_entropy(found, batch.answers, reduction="none")
    found = logits[:, -batch.positions :].float().transpose(1, 2)
    lost = functional.cross_entropy(found, batch.answers, ignore_index=IGNORED, reduction="none")
    return lost.sum(1) / (batch.answers != IGNORED).sum(1)


def answer_divergence(logits: torch.Tensor, expected: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Give the divergence from other answers where it is answered, in nats, ``(samples,)``.

    Args:
        logits: Shape ``(samples, positions, vocabulary)``.
        expected: The others' log-probabilities, of the same shape.
        batch: Says which positions answer.
    """
    found = functional.kl_div(
        logits.float().log_softmax(-1), expected, log_target=True, reduction="none"
    ).sum(-1)
    if batch.targets is not None or batch.answers is None:
        return found[:, -1]
    real = batch.answers != IGNORED
    return found.masked_fill(~real, 0.0).sum(1) / real.sum(1)


def graded(texts: Sequence[str], samples: Sequence[Sample]) -> Scores:
    """Grade written answers, each by the rule of its sample."""
    hit = np.array([grade(sample, text) for sample, text in zip(samples, texts, strict=True)])
    with np.errstate(divide="ignore"):
        return Scores(hit, np.log(hit))


def grade(sample: Sample, text: str) -> float:
    """Grade a written answer by the rule of its sample, in [0, 1].

    Raises:
        TaskError: The sample has no rule.
    """
    if sample.rule is None:
        raise TaskError(
            f"Sample {sample.id!r} has no rule to grade {text!r} by.",
            hint="Give it a rule, or let its answers be compared by their first tokens.",
        )
    return float(sample.rule.grade(sample, text))
