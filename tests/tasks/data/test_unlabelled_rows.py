"""Rows without answers: legal if the options say so, else refused with a cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import UNLABELLED, DataTask, Sample, Split, TaskOptions
from effllava_optuna.tasks.data.row_summary import summarise_rows
from tests.tasks.row_tasks import rows_with_images, write_rows

FREE = TaskOptions(labels=False)
CURE = 'quality.measure = "agreement"'


def samples_of(task: DataTask) -> dict[str, Sample]:
    return {
        sample.question.partition("\n")[0]: sample
        for split in Split
        for sample in task.samples(split)
    }


def without_answers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "answer"} for row in rows]


def test_a_dataset_needs_no_column_of_answers(tmp_path: Path) -> None:
    data = write_rows(tmp_path, without_answers(rows_with_images(tmp_path, 20)))
    task = DataTask("qa", data, options=FREE, proxy=8, validation=4, test=8)
    samples = samples_of(task).values()
    assert len(samples) == 20
    assert {(sample.targets, sample.is_labelled) for sample in samples} == {((), False)}
    assert task.unlabelled_rows == (20, 20)
    with pytest.raises(TaskError, match="has no column 'answer'") as caught:
        DataTask("qa", data, proxy=8).samples(Split.PROXY)
    assert f"or {CURE} if there are no answers" in str(caught.value)


@pytest.mark.parametrize("missing", [None, "", " ", []])
@pytest.mark.parametrize("choices", [None, ["red", "green"]])
def test_some_rows_may_have_answers(
    tmp_path: Path, missing: Any, choices: list[str] | None
) -> None:
    rows = rows_with_images(tmp_path, 20)
    for number, row in enumerate(rows):
        row["answer"] = missing if number % 2 else "red"
        row["choices"] = choices
    data = write_rows(tmp_path, rows)
    task = DataTask("qa", data, options=FREE, proxy=8, validation=4, test=8)
    for question, sample in samples_of(task).items():
        odd = int(question.removeprefix("q ").removesuffix("?")) % 2
        assert sample.is_labelled == (not odd)
        assert sample.correct_answer == ("" if odd else "A" if choices else "red")
        assert sample.answer == (None if choices is None else UNLABELLED if odd else 0)
    assert task.unlabelled_rows == (10, 20)
    with pytest.raises(TaskError, match="line 2: answer ") as caught:
        DataTask("qa", data, proxy=8).samples(Split.PROXY)
    assert CURE in str(caught.value)


def test_a_wrong_answer_is_refused_nevertheless(tmp_path: Path) -> None:
    rows = rows_with_images(tmp_path, 20)
    rows[3]["answer"] = 5
    with pytest.raises(TaskError, match="line 4: answer is 5, which is not a text") as caught:
        DataTask("qa", write_rows(tmp_path, rows), options=FREE, proxy=8).samples(Split.PROXY)
    assert CURE not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("scienceqa", "answer"),
        ("vizwiz", "answers"),
        ("mmvet", "answer"),
        ("llava-bench", "gpt_answer"),
    ],
)
def test_the_rows_of_every_benchmark_may_lack_answers(
    tmp_path: Path, name: str, label: str
) -> None:
    rows = [
        row | {"choices": ["p", "q"], "answer": None, label: None}
        for row in rows_with_images(tmp_path, 20)
    ]
    data = write_rows(tmp_path, rows)
    task = DataTask(name, data, options=FREE, proxy=8, validation=4, test=8)
    samples = samples_of(task).values()
    assert len(samples) == 20
    assert not any(sample.is_labelled for sample in samples)
    assert {sample.is_open_ended for sample in samples} == {name != "scienceqa"}
    assert task.unlabelled_rows == (20, 20)


def test_rows_without_answers_have_no_common_one(tmp_path: Path) -> None:
    data = write_rows(tmp_path, without_answers(rows_with_images(tmp_path, 20)))
    task = DataTask("qa", data, options=FREE, proxy=8, validation=4, test=8)
    assert not [note for note in summarise_rows(task).notes if "answers are" in note]
