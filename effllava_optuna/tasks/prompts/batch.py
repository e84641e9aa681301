"""A batch of encoded samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from effllava_optuna.tasks.sample import Sample

IGNORE_INDEX = -100  # label of a position without a target token, as in transformers


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one kind, encoded for one forward pass.

    Attributes:
        inputs: Keyword arguments of the model: ``input_ids`` and ``attention_mask`` of shape
            ``(samples, tokens)``, ``pixel_values`` if there are images, and further inputs that
            the processor of the model family creates.
        targets: Of closed questions, shape ``(samples, targets)``: the first token of each
            possible answer, -1 where a sample has fewer answers than others. Else None.
        answers: Of closed questions, shape ``(samples,)``: index of the correct answer in
            ``targets``. Of open-ended questions, shape ``(samples, positions)``: the token that
            each of the last positions shall predict, or `IGNORE_INDEX`. None: prompts only.
        samples: The samples, in order.
    """

    inputs: Mapping[str, Any]
    targets: torch.Tensor | None
    answers: torch.Tensor | None
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def positions(self) -> int:
        """Return the number of last positions whose logits predict the answer."""
        return 1 if self.targets is not None or self.answers is None else self.answers.shape[1]

    @property
    def new_tokens(self) -> int:
        """Return the largest number of tokens to generate."""
        return max(generation_length(sample) for sample in self.samples)

    @property
    def ids(self) -> tuple[str, ...]:
        """Return the id of each sample."""
        return tuple(sample.id for sample in self.samples)

    @property
    def groups(self) -> tuple[str, ...]:
        """Return the group of each sample."""
        return tuple(sample.group for sample in self.samples)

    def select(self, indices: torch.Tensor) -> Batch:
        """Select samples by index, shape ``(selected,)``.

        Every input must have one row for each sample.
        """
        return Batch(
            inputs={name: value[indices.to(value.device)] for name, value in self.inputs.items()},
            targets=_select_rows(self.targets, indices),
            answers=_select_rows(self.answers, indices),
            samples=tuple(self.samples[index] for index in indices.tolist()),
        )

    def to(self, device: torch.device | str) -> Batch:
        """Copy the tensors to ``device``."""
        return replace(
            self,
            inputs={name: value.to(device) for name, value in self.inputs.items()},
            targets=None if self.targets is None else self.targets.to(device),
            answers=None if self.answers is None else self.answers.to(device),
        )


def generation_length(sample: Sample) -> int:
    """Return the largest number of tokens to generate for a sample."""
    return 1 if sample.rule is None else sample.rule.new_tokens


def _select_rows(tensor: torch.Tensor | None, indices: torch.Tensor) -> torch.Tensor | None:
    return None if tensor is None else tensor[indices.to(tensor.device)]
