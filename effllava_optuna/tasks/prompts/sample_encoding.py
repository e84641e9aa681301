"""Encoding of samples as batches of tensors.

A closed question is scored by the logits after the prompt: by the first token of each possible
answer. An open-ended question is encoded together with its correct answer, and each token of the
answer is predicted from those before it, the end token included; or only its prompt is encoded,
and the model generates the answer. Rows are padded on the left, so that the last positions always
predict the answer. With padding on the right, position -1 would be padding.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.errors import TaskError
from effllava_optuna.processors import takes_pictures, tokenizer_of
from effllava_optuna.tasks.prompts.batch import IGNORE_INDEX, Batch, generation_length
from effllava_optuna.tasks.prompts.chat_prompt import (
    append_answer,
    build_model_inputs,
    format_prompt,
    require_answers_last,
)
from effllava_optuna.tasks.prompts.prompt_length import require_context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.tasks.sample import Sample

_MAX_LOGITS = 2**27  # logits of one batch with appended answers: 512 MB in float32


def encode_with_answers(
    processor: Any,
    samples: Sequence[Sample],
    *,
    batch_size: int = 64,
    context: int | None = None,
) -> tuple[Batch, ...]:
    """Encode samples with their answers, at most ``batch_size`` in a batch.

    A batch contains questions of one kind: with or without an image, closed or open-ended. The
    order within a kind is kept, unless the kind needs several batches: then the longest questions
    come first.

    Args:
        processor: Processor of the model.
        samples: The samples.
        batch_size: Largest number of samples in a batch.
        context: Largest number of tokens of a sample; None: any number.

    Raises:
        TaskError: There are no samples, an image cannot be opened, a text contains the image
            token, two answers of a question begin with the same token, an open-ended question has
            no correct answer, the processor cannot format a prompt, or a sample is longer than
            ``context``.
    """
    batches = []
    for members in divide_samples(processor, samples, batch_size=batch_size, answers=True):
        encode = _encode_open_ended if members[0].is_open_ended else _encode_closed
        batches.append(encode(processor, members))
        require_context(batches[-1], context)
    return tuple(batches)


def encode_prompts(
    processor: Any,
    samples: Sequence[Sample],
    *,
    batch_size: int = 64,
    context: int | None = None,
) -> tuple[Batch, ...]:
    """Encode the prompts of samples without answers, for generation.

    A batch contains questions of one kind: with or without an image, and with the same largest
    number of tokens to generate. If a kind needs several batches, the longest questions come
    first.

    Raises:
        TaskError: See `encode_with_answers`; answers are not checked.
    """
    batches = []
    for members in divide_samples(processor, samples, batch_size=batch_size, answers=False):
        inputs = _inputs(processor, members, _prompts(processor, members))
        batches.append(Batch(inputs, None, None, tuple(members)))
        require_context(batches[-1], context)
    return tuple(batches)


def divide_samples(
    processor: Any, samples: Sequence[Sample], *, batch_size: int = 64, answers: bool
) -> list[list[Sample]]:
    """Divide samples into batches of one kind, without encoding them.

    Args:
        processor: Processor of the model.
        samples: The samples.
        batch_size: Largest number of samples in a batch.
        answers: As `encode_with_answers` divides them; if false, as `encode_prompts` does.

    Returns:
        The samples of each batch. Divided again, they are one batch.

    Raises:
        TaskError: There are no samples, or an open-ended question has no correct answer.
    """
    if not samples:
        raise TaskError("There are no samples to encode.", hint="Check the task's split sizes.")

    def kind(sample: Sample) -> tuple[bool, bool, int]:
        if answers:
            return sample.image is None, sample.is_open_ended, 0
        return sample.image is None, False, generation_length(sample)

    batches = []
    for (_, open_ended, _), members in groupby(sorted(samples, key=kind), key=kind):
        alike = list(members)
        size = batch_size
        if open_ended:  # the model returns logits for each token of an answer
            tokenizer = tokenizer_of(processor)
            longest = max(len(tokenizer.encode(_answer_text(sample))) for sample in alike) + 1
            size = min(size, max(1, _MAX_LOGITS // (longest * len(tokenizer))))
        if len(alike) > size:  # samples of similar length share a batch: less padding
            alike.sort(key=lambda sample: -len(sample.system + sample.question))
        batches += [alike[start : start + size] for start in range(0, len(alike), size)]
    return batches


def _answer_text(sample: Sample) -> str:
    if not sample.correct_answer.strip() and sample.dense is None:
        raise TaskError(
            f"Sample {sample.name} has no correct answer to be compared with.",
            hint="Use a split that has answers.",
        )
    return sample.correct_answer.strip()


def _prompts(processor: Any, samples: Sequence[Sample]) -> list[str]:
    image_token = getattr(processor, "image_token", None)
    for sample in samples:
        if sample.image is not None and not takes_pictures(processor):
            raise TaskError(
                f"Sample {sample.name} has a picture, but the model takes none.",
                hint="Use a vision-language model, or rows without pictures.",
            )
        texts = (sample.question, sample.system, *sample.targets)
        if image_token and any(image_token in text for text in texts):
            part = "question" if image_token in sample.question else "system turn or answers"
            raise TaskError(
                f"Sample {sample.name} has {image_token!r} in its {part}.",
                hint="Remove it: the chat template inserts it where the image belongs.",
            )
    return [
        format_prompt(
            processor,
            sample.question,
            pictures=0 if sample.image is None else 1,
            system=sample.system,
        )
        for sample in samples
    ]


def _inputs(processor: Any, samples: Sequence[Sample], texts: Sequence[str]) -> dict[str, Any]:
    images = [sample.load_image() for sample in samples]
    return build_model_inputs(
        processor, texts, [[] if image is None else [image] for image in images]
    )


def _encode_closed(processor: Any, samples: Sequence[Sample]) -> Batch:
    for sample in samples:
        _answer_text(sample)
    prompts = _prompts(processor, samples)
    most = max(len(sample.targets) for sample in samples)
    targets = torch.full((len(samples), most), -1)
    first_tokens: dict[tuple[str, str], int] = {}  # by the end of the prompt, and the answer
    for row, (prompt, sample) in enumerate(zip(prompts, samples, strict=True)):
        for column, target in enumerate(sample.targets):
            key = prompt[-16:], target
            if key not in first_tokens:
                first_tokens[key] = append_answer(tokenizer_of(processor), prompt, target)[1][0]
            targets[row, column] = first_tokens[key]
        if len(set(targets[row, : len(sample.targets)].tolist())) < len(sample.targets):
            raise TaskError(
                f"Sample {sample.name}: two of its answers begin with the same token.",
                hint="Use answers, or letters, that begin differently.",
            )
    return Batch(
        _inputs(processor, samples, prompts),
        targets,
        torch.tensor([sample.answer for sample in samples]),
        tuple(samples),
    )


def _encode_open_ended(processor: Any, samples: Sequence[Sample]) -> Batch:
    tokenizer = tokenizer_of(processor)
    texts, appended, labels = [], [], []
    for prompt, sample in zip(_prompts(processor, samples), samples, strict=True):
        answer = _answer_text(sample)
        whole, tokens = append_answer(tokenizer, prompt, answer) if answer else (prompt, [])
        texts.append(whole)
        appended.append(tokens)
        labels.append(torch.tensor([*tokens, _end_label(tokenizer, sample)]))
    # The position before an answer predicts its first token; its last token predicts the end
    # token, or nothing.
    answers = torch.full((len(samples), max(map(len, labels))), IGNORE_INDEX)
    for row, label in enumerate(labels):
        answers[row, -len(label) :] = label
    inputs = _inputs(processor, samples, texts)
    require_answers_last(inputs, appended)
    return Batch(inputs, None, answers, tuple(samples))


def _end_label(tokenizer: Any, sample: Sample) -> int:
    """Return the end token, or `IGNORE_INDEX` if no end token follows the answer.

    Raises:
        TaskError: The answer has no token that could be predicted.
    """
    truncated = sample.dense is not None and sample.dense.truncated
    if tokenizer.eos_token_id is not None and not truncated:
        return int(tokenizer.eos_token_id)
    if not _answer_text(sample):
        raise TaskError(
            f"The dense model answers sample {sample.name} with no text and no end token.",
            hint="Remove the row, or raise task.new_tokens.",
        )
    return IGNORE_INDEX
