"""Turn samples into tensors: one forward pass answers a batch of questions.

A question with a closed set of answers is scored by the logits after the prompt: the answer
that would come first. Prompts are padded on the left, so that the last position is always the
one that answers (padding on the right and reading position -1 would read padding).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL.Image import Image

    from effllava_optuna.tasks._task import Sample


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples, ready for one forward pass.

    Attributes:
        inputs: Keyword arguments of the model: ``input_ids`` and ``attention_mask`` of shape
            ``(samples, tokens)``, ``pixel_values``, and what else the family's processor makes.
        targets: Shape ``(samples, targets)``; the token that each possible answer begins with,
            -1 where a sample has fewer possible answers than others.
        answers: Shape ``(samples,)``; index of the right answer in ``targets``.
        ids: The samples, in order.
        units: The independent unit of each sample.
    """

    inputs: Mapping[str, Any]
    targets: torch.Tensor
    answers: torch.Tensor
    ids: tuple[str, ...]
    units: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Batch:
        """Copy the tensors to ``device``."""
        return replace(
            self,
            inputs={name: value.to(device) for name, value in self.inputs.items()},
            targets=self.targets.to(device),
            answers=self.answers.to(device),
        )


def prompt(processor: Any, question: str) -> str:
    """Write the conversation up to where the assistant answers.

    Raises:
        TaskError: The processor has no chat template.
    """
    content = [{"type": "image"}, {"type": "text", "text": question}]
    try:
        text: str = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    except (ValueError, AttributeError) as error:
        raise TaskError(
            f"{type(processor).__name__} cannot write a prompt: {error}.",
            hint="Give the checkpoint a chat_template.jinja.",
        ) from error
    # Tokenizers merge a trailing space with the answer, which then is another token. A line
    # break stays: templates such as ChatML's begin the answer on a line of its own.
    return text.rstrip(" ")


def answer_token(tokenizer: Any, text: str, answer: str) -> int:
    """Find the token that ``answer`` begins with when it follows ``text``.

    Tokenizers look across the border: 'A' after a space is not the token of 'A' alone.

    Raises:
        TaskError: The answer changes how the prompt itself is tokenized.
    """
    before = tokenizer.encode(text, add_special_tokens=False)
    for joint in ("",) if text[-1:].isspace() else (" ", ""):
        after = tokenizer.encode(f"{text}{joint}{answer}", add_special_tokens=False)
        if after[: len(before)] == before and len(after) > len(before):
            return int(after[len(before)])
    raise TaskError(
        f"The answer {answer!r} changes the tokens of the prompt that ends in {text[-20:]!r}.",
        hint="End the chat template in a token that does not merge with an answer.",
    )


def encode(
    processor: Any, samples: Sequence[Sample], *, batch_size: int = 64
) -> tuple[Batch, ...]:
    """Encode ``samples`` in order, ``batch_size`` to a batch.

    Raises:
        TaskError: There are no samples, one has no picture or names the image token itself, two
            answers of one begin with the same token, or the processor cannot write a prompt.
    """
    if not samples:
        raise TaskError("There are no samples to encode.", hint="Check the task's split sizes.")
    return tuple(
        _encode(processor, samples[start : start + batch_size])
        for start in range(0, len(samples), batch_size)
    )


def _picture(processor: Any, sample: Sample) -> Image:
    token = getattr(processor, "image_token", None)
    if token and token in sample.question:
        raise TaskError(
            f"Sample {sample.id!r} has {token!r} in its question.",
            hint="Remove it: the chat template says where the picture goes.",
        )
    if not all(sample.image.size):
        raise TaskError(
            f"Sample {sample.id!r} has a picture of {sample.image.size} pixels.",
            hint="Give the picture that the question is about, or drop the row.",
        )
    return sample.image.convert("RGB")


def _encode(processor: Any, samples: Sequence[Sample]) -> Batch:
    prompts = [prompt(processor, sample.question) for sample in samples]
    bos = processor.tokenizer.bos_token
    inputs = processor(
        text=prompts,
        images=[_picture(processor, sample) for sample in samples],
        padding=True,
        padding_side="left",
        # As `apply_chat_template` does: a template that writes <s> itself shall not get two.
        add_special_tokens=bos is None or not prompts[0].startswith(bos),
        return_tensors="pt",
    )
    most = max(len(sample.targets) for sample in samples)
    targets = torch.full((len(samples), most), -1)
    known: dict[tuple[str, str], int] = {}
    for row, (text, sample) in enumerate(zip(prompts, samples, strict=True)):
        ending = text[-16:]
        for column, target in enumerate(sample.targets):
            if (ending, target) not in known:
                known[ending, target] = answer_token(processor.tokenizer, text, target)
            targets[row, column] = known[ending, target]
        if len(set(targets[row, : len(sample.targets)].tolist())) < len(sample.targets):
            raise TaskError(
                f"Sample {sample.id!r}: two of its answers begin with the same token.",
                hint="Use answers, or letters, that begin differently.",
            )
    return Batch(
        inputs=dict(inputs),
        targets=targets,
        answers=torch.tensor([sample.answer for sample in samples]),
        ids=tuple(sample.id for sample in samples),
        units=tuple(sample.unit for sample in samples),
    )
