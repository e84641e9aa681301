"""Answer questions with the dense model, whose answers take the place of labels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from effllava_optuna.objectives.grading import measure_of
from effllava_optuna.surgery import answer_logits, encode_images, generate
from effllava_optuna.tasks import (
    DenseAnswer,
    divide_samples,
    encode_prompts,
    encode_with_answers,
    target_logits,
    with_dense_answers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from effllava_optuna.objectives.grading import Measure
    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import DenseAnswers, Sample

_BATCH_SIZE = 64


@torch.no_grad()
def answer_questions(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    progress: Callable[[float], None] = lambda _: None,
) -> DenseAnswers:
    """Answer ``samples`` greedily, whether they have correct answers or not.

    The answer to a closed question is its most likely option. An open-ended one is answered by
    generation, up to ``new_tokens`` of its rule.

    Args:
        loaded: The dense model.
        samples: Questions of any kind.
        progress: Called with the finished share.

    Raises:
        TaskError: A sample cannot be encoded.
    """
    answers: DenseAnswers = {}
    with loaded.lock:
        for start in range(0, len(samples), _BATCH_SIZE):
            progress(start / len(samples))
            part = samples[start : start + _BATCH_SIZE]
            closed = [replace(s, answer=0) for s in part if not s.is_open_ended]
            open_ended = [s for s in part if s.is_open_ended]
            if closed:
                answers |= _choose(loaded, closed)
            if open_ended:
                answers |= _generate(loaded, open_ended)
    return answers


def graded_samples(
    dense: LoadedModel, samples: Sequence[Sample], measure: Measure
) -> tuple[Sample, ...]:
    """Return ``samples``; with the answers of the dense model if one has no correct answer.

    Args:
        dense: The dense model.
        samples: The samples.
        measure: What the search of the study maximizes.
    """
    if measure_of(samples, measure) == "accuracy":
        return tuple(samples)
    return with_dense_answers(samples, answer_questions(dense, samples))


def _choose(loaded: LoadedModel, samples: Sequence[Sample]) -> Iterator[tuple[str, DenseAnswer]]:
    """Yield the most likely option of each closed question."""
    for members in divide_samples(loaded.processor, samples, answers=True):
        (batch,) = encode_with_answers(loaded.processor, members, context=loaded.context)
        if batch.targets is None:
            continue
        logits = answer_logits(loaded, encode_images(loaded, batch.inputs, batch.positions))
        options = target_logits(logits, batch.targets.to(logits.device)).argmax(-1).tolist()
        for sample_id, option in zip(batch.ids, options, strict=True):
            yield sample_id, DenseAnswer(option=option)


def _generate(loaded: LoadedModel, samples: Sequence[Sample]) -> Iterator[tuple[str, DenseAnswer]]:
    """Yield the generated answer to each open-ended question."""
    for members in divide_samples(loaded.processor, samples, answers=False):
        (batch,) = encode_prompts(loaded.processor, members, context=loaded.context)
        encoded = encode_images(loaded, batch.inputs, batch.positions)
        for sample_id, (text, complete) in zip(
            batch.ids, generate(loaded, encoded, batch.new_tokens), strict=True
        ):
            yield sample_id, DenseAnswer(_without_pictures(loaded, text), truncated=not complete)


def _without_pictures(loaded: LoadedModel, text: str) -> str:
    """Remove the image token, which a prompt with the answer must not contain again."""
    token = getattr(loaded.processor, "image_token", None)
    return text.replace(token, "").strip() if token else text
