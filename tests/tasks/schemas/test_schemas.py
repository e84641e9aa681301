"""Prompts, targets and grading rules of the row schemas."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import DataTask, Sample, Split, TaskOptions, grade_answer
from effllava_optuna.tasks.schemas import RowSchema, ScienceQA, UserRows, VizWiz
from tests.tasks.row_tasks import benchmark_task, rows_with_images, write_rows


def test_the_prompt_of_scienceqa_is_that_of_llava(drawn: Path) -> None:
    rows = datasets.load_from_disk(str(drawn / "scienceqa"))["test"]
    task = benchmark_task(drawn, "scienceqa", test=len(rows))
    samples = task.samples(Split.TEST)
    assert [sample.id for sample in samples] == [f"test-{i:05d}" for i in range(len(rows))]
    for sample, row in zip(samples, rows, strict=True):
        context = f"Context: {row['hint']}\n" if row["hint"] else ""
        options = "\n".join(f"{'ABCDE'[i]}. {text}" for i, text in enumerate(row["choices"]))
        assert sample.question == (
            f"{context}{row['question']}\n{options}\n"
            "Answer with the option's letter from the given choices directly."
        )
        assert (sample.answer, sample.correct_answer) == (row["answer"], "ABCDE"[row["answer"]])
        assert (sample.image is None) == (row["image"] is None)
        grade_ = int(row["grade"].removeprefix("grade"))
        assert set(sample.subsets) == {
            {"natural": "NAT", "social": "SOC", "language": "LAN"}[row["subject"].split()[0]],
            "G1-6" if grade_ <= 6 else "G7-12",
            *(["TXT"] if row["hint"] else []),
            *(["IMG"] if row["image"] else []),
            *([] if row["hint"] or row["image"] else ["NO"]),
        }
    counts = Counter(name for sample in samples for name in sample.subsets)
    assert set(counts) == {"NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12"}
    assert counts["NAT"] + counts["SOC"] + counts["LAN"] == len(rows)
    assert 0.2 < task.chance < 0.5


def test_vizwiz_has_ten_answers_sorted_by_frequency(drawn: Path) -> None:
    for sample in benchmark_task(drawn, "vizwiz").samples(Split.PROXY):
        counts = Counter(target.lower() for target in sample.targets)
        assert len(sample.targets) == 10
        assert counts[sample.correct_answer.lower()] == max(counts.values())
        assert sample.question.endswith(
            "\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
            "Answer the question using a single word or phrase."
        )
        assert sample.rule is not None
        assert sample.rule.baseline_answer == "unanswerable"


def test_answers_with_a_confidence_are_parsed(tmp_path: Path) -> None:
    answers = [{"answer": "cat", "answer_confidence": "yes"}] * 6 + [{"answer": "dog"}] * 4
    rows = [
        {"image": row["image"], "question": row["question"], "answers": answers}
        for row in rows_with_images(tmp_path, 12)
    ]
    sample = DataTask("vizwiz", write_rows(tmp_path, rows), proxy=8).samples(Split.PROXY)[0]
    assert sample.targets == ("cat",) * 6 + ("dog",) * 4


def test_an_mmvet_reference_is_a_plain_text_and_a_grading_pattern(drawn: Path) -> None:
    task = benchmark_task(drawn, "mmvet")
    joined = [s for s in task.all_rows(Split.TEST) if "<AND>" in s.targets[-1]]
    assert joined
    for sample in joined:
        assert "<" not in sample.correct_answer
        assert grade_answer(sample, sample.correct_answer) == 1.0
    assert any(len(sample.subsets) > 1 for sample in joined)


def test_options_change_the_harness_the_prompt_and_the_length(drawn: Path) -> None:
    options = TaskOptions(
        harness="lmms-eval", instruction="Letter?", system="Be brief.", new_tokens=3
    )
    sample = benchmark_task(drawn, "scienceqa", options=options).samples(Split.PROXY)[0]
    assert sample.question.endswith("\nLetter?")
    assert sample.system == "Be brief."
    assert sample.rule is not None
    assert (sample.rule.name, sample.rule.new_tokens) == (
        "ScienceQA accuracy (lmms-eval parsing)",
        3,
    )
    assert grade_answer(sample, f"The answer is {sample.correct_answer}.") == 0
    plain = benchmark_task(drawn, "scienceqa").samples(Split.PROXY)[0]
    assert grade_answer(plain, f"The answer is {plain.correct_answer}.") == 1
    with pytest.raises(TaskError, match=r"task.harness = 'ours' is unknown.*Use one of llava"):
        benchmark_task(drawn, "scienceqa", options=TaskOptions(harness="ours")).samples(
            Split.PROXY
        )


def test_a_closed_question_has_its_answer_as_index_letter_or_text(tmp_path: Path) -> None:
    rows = rows_with_images(tmp_path, 30)
    for row, answer in zip(rows, (1, "B", "blue") * 10, strict=True):
        row |= {"choices": ["red", "blue"], "answer": answer}
    data = DataTask("qa", write_rows(tmp_path, [{**r, "answer": str(r["answer"])} for r in rows]))
    with pytest.raises(TaskError, match="line 1: answer '1' is outside its 2 choices"):
        data.samples(Split.PROXY)
    rows = [{**row, "answer": 1} for row in rows]
    task = DataTask("qa", write_rows(tmp_path, rows), proxy=10, validation=5, test=5)
    assert {sample.correct_answer for sample in task.samples(Split.TEST)} == {"B"}
    named = [
        {**row, "answer": answer} for row, answer in zip(rows, ("B", "blue") * 15, strict=True)
    ]
    again = DataTask("qa", write_rows(tmp_path, named, "b.jsonl"), proxy=10, validation=5, test=5)
    assert {sample.answer for sample in again.samples(Split.TEST)} == {1}


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [(["B", "A"], "A", "'A' may be A or B"), (["x", "y", "x"], "x", "'x' may be A or C")],
)
def test_an_answer_that_matches_two_choices_is_refused(
    tmp_path: Path, choices: list[str], answer: str, message: str
) -> None:
    rows = [row | {"choices": choices, "answer": answer} for row in rows_with_images(tmp_path, 12)]
    with pytest.raises(TaskError, match=f"line 1: answer {message}"):
        DataTask("qa", write_rows(tmp_path, rows), proxy=8).samples(Split.PROXY)


@pytest.mark.parametrize("harness", [None, "llava", "lmms-eval", "token-f1", "exact-match"])
@pytest.mark.parametrize("count", [2, 5, 6, 8, 26])
def test_a_perfect_model_scores_one_with_any_number_of_choices(
    count: int, harness: str | None
) -> None:
    schema = UserRows(TaskOptions(harness=harness))
    choices = [f"option {number}" for number in range(count)]
    for index in range(count):
        row = {"question": "q?", "choices": choices, "answer": index}
        sample = sample_of(schema, row)
        assert grade_answer(sample, sample.correct_answer) == 1
        assert grade_answer(sample, f"{sample.correct_answer}. {choices[index]}") == 1


@pytest.mark.parametrize("harness", ["token-f1", "exact-match"])
@given(answer=st.text(min_size=1).filter(lambda text: text.strip() and text.isprintable()))
@example(answer="C++")
@example(answer="\u7ea2\u8272")
@example(answer="-1,000.50 %")
@example(answer="the A.")
def test_a_perfect_model_scores_one_on_any_text(answer: str, harness: str) -> None:
    sample = sample_of(
        UserRows(TaskOptions(harness=harness)), {"question": "q?", "answer": answer}
    )
    assert grade_answer(sample, answer) == 1


@pytest.mark.parametrize("schema", [UserRows, ScienceQA])
def test_more_choices_than_letters_are_refused(schema: type[RowSchema]) -> None:
    row = {"question": "q?", "choices": [str(number) for number in range(27)], "answer": 26}
    with pytest.raises(ValueError, match="choices has 27 entries, 26 at most"):
        schema(TaskOptions()).parse(row, has_image=False)


def test_one_answer_is_refused_where_an_answer_is_compared_with_those_of_others() -> None:
    """VizWiz compares an answer with those of the other people: one answer always scores 0."""
    row = {"question": "q?", "answers": ["cat"]}
    with pytest.raises(ValueError, match="answers has 1 entries, but needs 2"):
        VizWiz(TaskOptions()).parse(row, has_image=True)
    sample = sample_of(VizWiz(TaskOptions()), {"question": "q?", "answers": ["cat"] * 4})
    assert grade_answer(sample, "cat") == 1


def sample_of(schema: RowSchema, row: dict[str, Any]) -> Sample:
    content = schema.parse(row, has_image=True)
    rule = schema.grading_rule(closed=content.answer is not None)
    return Sample(
        "a", "a", Split.TEST, None, content.question, content.targets, content.answer, rule
    )


@pytest.mark.parametrize(
    ("task", "column", "value"),
    [
        *(("mmvet", "capability", value) for value in (5, 0.5, True, {"a": 1}, [1], [["ocr"]])),
        *(("vizwiz", "answers", value) for value in (5, 0, 0.5, True, {"a": 1}, [1, 2], "yes")),
        ("vizwiz", "answers", [{"answer": 5}, {"answer": "a"}]),
        ("scienceqa", "grade", "grade" + "9" * 5000),
    ],
)
def test_a_value_of_another_type_in_a_benchmark_is_named(
    tmp_path: Path, task: str, column: str, value: Any
) -> None:
    rows = rows_with_images(tmp_path, 12)
    for row in rows:
        row |= {"answers": ["a", "b"]}
        row |= {"choices": ["a", "b"], "answer": 0} if task == "scienceqa" else {}
    rows[3][column] = value
    with pytest.raises(TaskError, match=f"line 4: {column} (is|has) ") as caught:
        DataTask(task, write_rows(tmp_path, rows), proxy=4).samples(Split.PROXY)
    assert "line 5" not in str(caught.value)
