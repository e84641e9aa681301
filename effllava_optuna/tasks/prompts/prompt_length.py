"""Refuse prompts that are longer than the context of a model (lm-evaluation-harness issue 2657).

A model with learned positions fails on them; one with rotary positions answers, but worse than on
any prompt that it was trained on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from effllava_optuna.errors import TaskError
from effllava_optuna.processors import tokenizer_of
from effllava_optuna.tasks.prompts.batch import generation_length
from effllava_optuna.tasks.prompts.chat_prompt import format_prompt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from effllava_optuna.tasks.prompts.batch import Batch
    from effllava_optuna.tasks.sample import Sample

_HINT = (
    "Shorten the sample, task.system or task.instruction, reduce task.new_tokens, or use a model "
    "with a longer context."
)


def require_context(batch: Batch, context: int | None) -> None:
    """Check that the samples of a batch fit into the context of a model.

    Args:
        batch: Prompts, with or without answers.
        context: Largest number of tokens; None: any number.

    Raises:
        TaskError: One does not; the message names it.
    """
    if context is None:
        return
    lengths = batch.inputs["attention_mask"].sum(1).tolist()
    for sample, tokens in zip(batch.samples, lengths, strict=True):
        generated = generation_length(sample) if batch.answers is None else 0
        if tokens + generated > context:
            _refuse(sample, int(tokens), generated, context)


def require_text_context(
    processor: Any, samples: Iterable[Sample], context: int | None, picture_tokens: int
) -> None:
    """Check that samples fit into the context of a model, without opening their pictures.

    Args:
        processor: Processor of the model.
        samples: Samples that the model answers.
        context: Largest number of tokens; None: any number.
        picture_tokens: Tokens of a picture, beside its token in the text.

    Raises:
        TaskError: One does not; the message names it.
    """
    if context is None:
        return
    for sample in samples:
        pictures = 0 if sample.image is None else picture_tokens
        tokens = count_text_tokens(processor, sample) + pictures
        generated = generation_length(sample) if sample.is_open_ended else 0
        if tokens + generated > context:
            _refuse(sample, tokens, generated, context)


def count_text_tokens(processor: Any, sample: Sample) -> int:
    """Count the tokens of a prompt in which a picture is one token."""
    prompt = format_prompt(
        processor,
        sample.question,
        pictures=0 if sample.image is None else 1,
        system=sample.system,
    )
    tokenizer = tokenizer_of(processor)
    bos = tokenizer.bos_token
    return len(
        tokenizer.encode(prompt, add_special_tokens=bos is None or not prompt.startswith(bos))
    )


def _refuse(sample: Sample, tokens: int, generated: int, context: int) -> NoReturn:
    answer = f" and may generate {generated}" if generated else ""
    raise TaskError(
        f"Sample {sample.name} has a prompt of {tokens} tokens{answer}, but the model has "
        f"a context of {context}.",
        hint=_HINT,
    )
