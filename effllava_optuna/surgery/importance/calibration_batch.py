"""A batch of calibration samples, and the scalars of its answers that gradients are taken of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class CalibrationBatch:
    """A batch of calibration samples.

    Attributes:
        inputs: Keyword arguments of the model, padded on the left.
        targets: Shape ``(samples, targets)``: token ids that the answer may begin with, -1 for
            padding. None: any token.
        answers: Either shape ``(samples,)``: index of the right answer in ``targets``, or its
            token id without ``targets``; only the loss reads it. Or, without ``targets``, shape
            ``(samples, positions)``: the token to predict at each of the last positions, -100 at
            positions outside the answer; then goals are summed over the tokens of the answer.
    """

    inputs: Mapping[str, Any]
    targets: torch.Tensor | None = None
    answers: torch.Tensor | None = None

    @property
    def positions(self) -> int:
        """Count the last positions whose logits are needed."""
        if self.targets is None and self.answers is not None and self.answers.dim() == 2:
            return self.answers.shape[1]
        return 1

    def goal(self, logits: torch.Tensor, name: str) -> torch.Tensor:
        """Compute the sum of a goal over the answers.

        Args:
            logits: Logits of the last positions, shape ``(samples, positions, vocabulary)``.
            name: ``margin``: logit of the likeliest answer minus that of the second likeliest.
                ``loss``: cross-entropy of the right answer, in nats.

        Raises:
            ModelError: ``name`` is unknown, or the batch has no right answers.
        """
        if name not in ("margin", "loss"):
            raise ModelError(f"{name!r} is not a goal.", hint="Use margin or loss.")
        possible = self._answer_logits(logits)
        if name == "margin":
            best = possible.topk(2, dim=-1).values
            return (best[:, 0] - best[:, 1]).sum()
        if self.answers is None:
            raise ModelError(
                "The goal 'loss' needs the right answers of the calibration samples.",
                hint="Use CalibrationBatch(inputs, targets, answers).",
            )
        right = self.answers[self.answers >= 0].to(logits.device)
        return torch.nn.functional.cross_entropy(possible, right, reduction="sum")

    def margin_change(self, before: torch.Tensor, after: torch.Tensor) -> float:
        """Compute the sum over samples of the squared change of the margin.

        The margin is that of the two likeliest answers before; over the tokens of an open-ended
        answer it is summed.

        Args:
            before: Logits of the last positions, shape ``(samples, positions, vocabulary)``.
            after: Those of another network.
        """
        possible, changed = self._answer_logits(before), self._answer_logits(after)
        index = possible.topk(2, dim=-1).indices
        moved = (changed - possible).float().gather(1, index)
        margins = moved[:, 0] - moved[:, 1]
        if self.targets is None and self.answers is not None and self.answers.dim() == 2:
            rows = (self.answers >= 0).nonzero()[:, 0].to(margins.device)
            margins = margins.new_zeros(len(self.answers)).index_add(0, rows, margins)
        return float(margins.square().sum())

    def _answer_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits of the possible answers, one row per sample or per answer token."""
        if self.targets is not None:
            targets = self.targets.to(logits.device)
            last = logits[:, -1].gather(1, targets.clamp(min=0))
            return last.masked_fill(targets < 0, float("-inf"))
        if self.answers is None or self.answers.dim() == 1:
            return logits[:, -1]
        return logits[(self.answers >= 0).to(logits.device)]
