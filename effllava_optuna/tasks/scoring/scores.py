"""Scores of a model: from its logits, and from the answers that it generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from effllava_optuna.errors import TaskError, describe, shorten
from effllava_optuna.tasks.prompts.batch import IGNORE_INDEX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from effllava_optuna.tasks.prompts.batch import Batch
    from effllava_optuna.tasks.sample import Sample


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a model by sample.

    Attributes:
        hit: Shape ``(samples,)``, in [0, 1]. Closed questions: 1 if the most likely answer is the
            correct one, else 0.
        log_probability: Shape ``(samples,)``, <= 0. Closed questions: of the correct answer among
            the possible ones. Generated answers: the logarithm of ``hit``.
    """

    hit: NDArray[np.float64]
    log_probability: NDArray[np.float64]

    @property
    def probability(self) -> NDArray[np.float64]:
        """Return the probability of the correct answer, shape ``(samples,)``, in [0, 1]."""
        return np.exp(self.log_probability)

    @staticmethod
    def from_tensors(parts: Sequence[torch.Tensor]) -> Scores:
        """Copy results of `score_on_device` to the host, all in one transfer."""
        hit, log_probability = torch.cat(list(parts), dim=1).cpu().numpy()
        return Scores(hit, log_probability)

    @staticmethod
    def concatenate(parts: Sequence[Scores]) -> Scores:
        """Concatenate scores of several batches."""
        return Scores(
            np.concatenate([part.hit for part in parts]),
            np.concatenate([part.log_probability for part in parts]),
        )


def target_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Select the logit of each possible answer.

    Args:
        logits: Shape ``(samples, positions, vocabulary)``; the last position predicts the answer.
        targets: Shape ``(samples, targets)``, see `Batch`.

    Returns:
        Shape ``(samples, targets)``; minus infinity where a sample has fewer answers.
    """
    selected = logits[:, -1].float().gather(1, targets.clamp(min=0))
    return selected.masked_fill(targets < 0, float("-inf"))


def score_logits(logits: torch.Tensor, batch: Batch) -> Scores:
    """Score logits as `score_on_device` does, and wait for the result."""
    return Scores.from_tensors([score_on_device(logits, batch)])


def score_on_device(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Score logits on their device, without a synchronisation.

    For an open-ended question, a hit is the fraction of the tokens of the correct answer that are
    the most likely ones, and the log-probability is the mean over these tokens. Both are proxies
    of the grade that its rule gives to a generated answer.

    NaN counts as a wrong answer with probability 0.

    Args:
        logits: Shape ``(samples, positions, vocabulary)``.
        batch: A batch with answers.

    Returns:
        Shape ``(2, samples)``, float64: hits, and log-probabilities.

    Raises:
        TaskError: The batch has no answers.
    """
    if batch.answers is None:
        raise TaskError(
            "These prompts have no answers to score.", hint="Use `encode_with_answers`."
        )
    if batch.targets is None:
        log_probabilities = logits[:, -batch.positions :].float().log_softmax(-1)
        labelled = batch.answers != IGNORE_INDEX
        labels = batch.answers.clamp(min=0)
        n_tokens = labelled.sum(1).double()
        by_token = log_probabilities.gather(2, labels[..., None])[..., 0]
        log_probability = by_token.masked_fill(~labelled, 0.0).double().sum(1) / n_tokens
        hit = ((log_probabilities.argmax(-1) == labels) & labelled).sum(1) / n_tokens
    else:
        log_probabilities = target_logits(logits, batch.targets).log_softmax(-1)
        log_probability = log_probabilities.gather(1, batch.answers[:, None])[:, 0]
        hit = log_probabilities.argmax(-1) == batch.answers
    invalid = log_probability.isnan()
    return torch.stack(
        [
            hit.double().masked_fill(invalid, 0.0),
            log_probability.double().masked_fill(invalid, float("-inf")),
        ]
    )


def answer_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy of the correct answers in nats, shape ``(samples,)``.

    For an open-ended question it is the mean over the tokens of the answer.

    Args:
        logits: Shape ``(samples, positions, vocabulary)``.
        batch: A batch with answers.

    Raises:
        TaskError: The batch has no answers.
    """
    if batch.answers is None:
        raise TaskError(
            "These prompts have no answers to train on.", hint="Use `encode_with_answers`."
        )
    if batch.targets is not None:
        return functional.cross_entropy(
            target_logits(logits, batch.targets), batch.answers, reduction="none"
        )
    by_token = functional.cross_entropy(
        logits[:, -batch.positions :].float().transpose(1, 2),
        batch.answers,
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )
    return by_token.sum(1) / (batch.answers != IGNORE_INDEX).sum(1)


def answer_divergence(logits: torch.Tensor, expected: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the KL divergence from ``expected`` where the answer is predicted, ``(samples,)``.

    Args:
        logits: Shape ``(samples, positions, vocabulary)``.
        expected: Log-probabilities of another model, of the same shape.
        batch: The batch; its labels select the positions to average over.

    Returns:
        Shape ``(samples,)``, in nats.
    """
    by_position = functional.kl_div(
        logits.float().log_softmax(-1), expected, log_target=True, reduction="none"
    ).sum(-1)
    if batch.targets is not None or batch.answers is None:
        return by_position[:, -1]
    labelled = batch.answers != IGNORE_INDEX
    return by_position.masked_fill(~labelled, 0.0).sum(1) / labelled.sum(1)


def grade_answers(texts: Sequence[str], samples: Sequence[Sample]) -> Scores:
    """Grade generated answers, each by the rule of its sample."""
    hit = np.array(
        [grade_answer(sample, text) for sample, text in zip(samples, texts, strict=True)]
    )
    with np.errstate(divide="ignore"):
        return Scores(hit, np.log(hit))


def grade_answer(sample: Sample, text: str) -> float:
    """Grade a generated answer by the rule of its sample, in [0, 1].

    Raises:
        TaskError: The sample has no rule, or the rule returns no number in [0, 1].
    """
    if sample.rule is None:
        raise TaskError(
            f"Sample {shorten(sample.id)} has no rule to grade {shorten(text)} by.",
            hint="Set `rule`, or compare its answers by their first tokens.",
        )
    try:
        score = sample.rule.grade(sample, text)
        valid = not isinstance(score, str) and 0 <= float(score) <= 1
    except (KeyboardInterrupt, TaskError):
        raise
    except BaseException as error:  # the user's rule may raise anything, `SystemExit` too
        raise TaskError(
            f"Rule {sample.rule.name!r} cannot grade {shorten(text)} of sample "
            f"{shorten(sample.id)}: {describe(error)}.",
            hint="Fix the rule.",
        ) from error
    if not valid:
        raise TaskError(
            f"Rule {sample.rule.name!r} grades {shorten(text)} of sample {shorten(sample.id)} as "
            f"{shorten(score)}.",
            hint="Return a number in [0, 1].",
        )
    return float(score)
