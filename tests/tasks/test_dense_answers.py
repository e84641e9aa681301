"""Answers of the dense model in the place of labels."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from effllava_optuna.errors import StudyError, TaskError
from effllava_optuna.tasks import (
    AGREEMENT,
    UNLABELLED,
    DenseAnswer,
    Digits,
    GradingRule,
    Sample,
    Split,
    answers_from_json,
    answers_to_json,
    encode_with_answers,
    grade_answer,
    validate_task,
    with_dense_answers,
)
from effllava_optuna.tasks.prompts.batch import IGNORE_INDEX
from effllava_optuna.tasks.sample_check import check_samples

RULE = GradingRule("any", lambda _sample, _text: 1.0, new_tokens=3)
CLOSED = replace(Digits(proxy=8).samples(Split.PROXY)[0], answer=UNLABELLED)
OPEN = replace(Digits(proxy=8).samples(Split.PROXY)[1], answer=None, targets=(), rule=RULE)
ANSWERS = {CLOSED.id: DenseAnswer(option=4), OPEN.id: DenseAnswer("7 8", truncated=True)}


def answered(text: str, *, truncated: bool = False) -> Sample:
    (sample,) = with_dense_answers([OPEN], {OPEN.id: DenseAnswer(text, truncated=truncated)})
    return sample


def test_samples_without_labels_have_no_correct_answer() -> None:
    for sample in (CLOSED, OPEN):
        assert (sample.is_labelled, sample.correct_answer) == (False, "")
    assert (CLOSED.is_open_ended, OPEN.is_open_ended) == (False, True)


def test_the_answer_of_the_dense_model_takes_the_place_of_the_correct_one() -> None:
    closed, open_ended = with_dense_answers([CLOSED, OPEN], ANSWERS)
    assert (closed.answer, closed.correct_answer) == (4, closed.targets[4])
    assert (open_ended.targets, open_ended.correct_answer) == (("7 8",), "7 8")
    assert open_ended.rule is not None
    assert (open_ended.rule.name, open_ended.rule.new_tokens) == (AGREEMENT, 3)
    grades = [grade_answer(open_ended, text) for text in (" 7 8\n", "7", "9", "")]
    assert grades == pytest.approx([1.0, 2 / 3, 0.0, 0.0])


def test_labels_are_replaced_too() -> None:
    labelled = Digits(proxy=8).samples(Split.PROXY)[0]
    assert labelled.answer != 4
    (sample,) = with_dense_answers([labelled], ANSWERS)
    assert sample.answer == 4


def test_answers_are_stored_as_json() -> None:
    stored = json.loads(json.dumps(answers_to_json(ANSWERS)))
    assert stored == {CLOSED.id: 4, OPEN.id: ["7 8", True]}
    assert answers_from_json(stored) == ANSWERS


@pytest.mark.parametrize(
    "answers",
    [{}, {CLOSED.id: DenseAnswer("7")}, {CLOSED.id: DenseAnswer(option=99)}],
    ids=["missing", "of an open question", "of another task"],
)
def test_answers_to_other_samples_are_refused(answers: dict[str, DenseAnswer]) -> None:
    with pytest.raises(StudyError, match="have none for sample 'proxy-0000'") as caught:
        with_dense_answers([CLOSED], answers)
    assert "Use the samples that the study began with" in str(caught.value)


def test_a_whole_answer_ends_in_the_end_token_and_a_truncated_one_in_nothing(
    processor: Any,
) -> None:
    end = processor.tokenizer.eos_token_id
    tokens = processor.tokenizer.encode("7 8", add_special_tokens=False)
    samples = [answered("7 8"), replace(answered("7 8", truncated=True), id="cut")]
    (batch,) = encode_with_answers(processor, samples)
    assert batch.answers is not None
    assert batch.answers.tolist() == [[*tokens, end], [*tokens, IGNORE_INDEX]]


def test_an_empty_answer_is_the_end_token_alone(processor: Any) -> None:
    (batch,) = encode_with_answers(processor, [answered(""), replace(answered("7"), id="b")])
    assert batch.answers is not None
    seven = processor.tokenizer.encode("7", add_special_tokens=False)
    end = processor.tokenizer.eos_token_id
    assert batch.answers.tolist() == [[IGNORE_INDEX, end], [*seven, end]]


def test_an_answer_without_any_token_is_refused(processor: Any) -> None:
    with pytest.raises(TaskError, match="with no text and no end token"):
        encode_with_answers(processor, [answered("", truncated=True)])


def test_a_closed_question_without_a_label_is_not_encoded_with_an_answer(processor: Any) -> None:
    with pytest.raises(TaskError, match="no correct answer to be compared with"):
        encode_with_answers(processor, [CLOSED])


class Unlabelled(Digits):
    def samples(self, split: Split) -> tuple[Sample, ...]:
        samples = super().samples(split)
        return tuple(replace(sample, answer=UNLABELLED) for sample in samples)


def test_the_options_of_closed_questions_are_checked_without_labels(processor: Any) -> None:
    task = Unlabelled(proxy=8, validation=4, test=4)
    check_samples(task, processor, None, generate=True, progress=lambda _: None)
    with pytest.raises(TaskError, match="26 tokens, but the model has a context of 5"):
        check_samples(task, processor, 5, generate=True, progress=lambda _: None)


def test_a_task_without_labels_is_valid_only_if_none_are_needed() -> None:
    task = Unlabelled(proxy=8, validation=4, test=4)
    assert validate_task(task, labels=False) is task
    with pytest.raises(TaskError, match="has no answer") as caught:
        validate_task(task)
    assert 'quality.measure = "agreement"' in str(caught.value)
