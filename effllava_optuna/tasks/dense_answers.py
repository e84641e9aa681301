"""Answers of the dense model in the place of correct answers, for questions without labels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import StudyError
from effllava_optuna.tasks.sample import DenseAnswer, GradingRule
from effllava_optuna.tasks.scoring.free_text import token_f1

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.tasks.sample import Sample

AGREEMENT = "same option as the dense model, or F1 of the words"  # name of the rule

DenseAnswers = dict[str, DenseAnswer]
"""Answers of the dense model, by the id of the sample."""


def with_dense_answers(
    samples: Sequence[Sample], answers: Mapping[str, DenseAnswer]
) -> tuple[Sample, ...]:
    """Replace the correct answers of ``samples`` by those of the dense model.

    A generated answer is graded by the words that it shares with that of the dense model, see
    `token_f1`; the options of a closed question are always compared.

    Raises:
        StudyError: A sample has no answer of its kind: the answers belong to other samples.
    """
    return tuple(_with_dense_answer(sample, answers.get(sample.id)) for sample in samples)


def _with_dense_answer(sample: Sample, answer: DenseAnswer | None) -> Sample:
    option = None if answer is None else answer.option
    closed = not sample.is_open_ended
    if (
        answer is None
        or closed != (option is not None)
        or (option or 0) >= len(sample.targets) > 0
    ):
        raise StudyError(
            f"The stored answers of the dense model have none for sample {sample.name}.",
            hint="Use the samples that the study began with, or start a new study.",
        )
    if closed:
        return replace(sample, answer=option, rule=None, dense=answer)
    new_tokens = 1 if sample.rule is None else sample.rule.new_tokens
    rule = GradingRule(AGREEMENT, _shared_words, new_tokens)
    return replace(sample, targets=(answer.text,), rule=rule, dense=answer)


def _shared_words(sample: Sample, text: str) -> float:
    return token_f1(text, sample.targets)


def answers_to_json(answers: Mapping[str, DenseAnswer]) -> dict[str, Any]:
    """Return answers as JSON values: an index, or a text and whether it was cut."""
    return {
        sample_id: [answer.text, answer.truncated] if answer.option is None else answer.option
        for sample_id, answer in answers.items()
    }


def answers_from_json(stored: Mapping[str, Any]) -> DenseAnswers:
    """Read what `answers_to_json` returned."""
    return {
        sample_id: DenseAnswer(option=value)
        if isinstance(value, int)
        else DenseAnswer(text=value[0], truncated=value[1])
        for sample_id, value in stored.items()
    }
