"""Score answers: right or wrong, and how sure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from effllava_optuna.tasks.batches import Batch


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model answered, sample by sample.

    Attributes:
        hit: Shape ``(samples,)``; 1 where the likeliest answer is the right one, else 0.
        log_probability: Shape ``(samples,)``; of the right answer among the possible ones, <= 0.
    """

    hit: NDArray[np.float64]
    log_probability: NDArray[np.float64]

    @property
    def probability(self) -> NDArray[np.float64]:
        """Give the probability of the right answer, shape ``(samples,)``, in [0, 1]."""
        return np.exp(self.log_probability)

    @staticmethod
    def joined(parts: Sequence[Scores]) -> Scores:
        """Put scores one behind the other."""
        return Scores(
            np.concatenate([part.hit for part in parts]),
            np.concatenate([part.log_probability for part in parts]),
        )


def target_logits(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Pick each possible answer's logit: ``(samples, vocabulary)`` -> ``(samples, targets)``."""
    picked = logits.float().gather(1, batch.targets.clamp(min=0))
    return picked.masked_fill(batch.targets < 0, float("-inf"))


def score(logits: torch.Tensor, batch: Batch) -> Scores:
    """Score the ``logits`` (shape ``(samples, vocabulary)``) that follow the prompts.

    A model that answers NaN is wrong, and its probability is 0.
    """
    log_probabilities = target_logits(logits, batch).log_softmax(-1)
    hit = log_probabilities.argmax(-1) == batch.answers
    right = log_probabilities.gather(1, batch.answers[:, None])[:, 0]
    broken = right.isnan()
    return Scores(
        (hit & ~broken).double().cpu().numpy(),
        right.masked_fill(broken, float("-inf")).double().cpu().numpy(),
    )
