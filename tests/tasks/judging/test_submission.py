from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.judging.benchmark_judges import AnsweredQuestion
from effllava_optuna.tasks.judging.submission import (
    write_llava_bench,
    write_mmvet,
    write_scienceqa,
    write_vizwiz,
)


def lower(text: str) -> str:
    return text.lower()


def row(id_: str, prediction: str = "a cat") -> AnsweredQuestion:
    return AnsweredQuestion(id_, f"question {id_}?", "reference", prediction, ("conv",))


def read(path: Path) -> Any:
    return json.loads(path.read_bytes().decode("utf-8"))


def test_mmvet_ids_get_their_prefix_once_and_are_in_order(tmp_path: Path) -> None:
    path = tmp_path / "results" / "model.json"
    write_mmvet(path, {"10": "ten", "v1_2": "two", "0": "zéro 猫"})
    assert list(read(path).items()) == [("v1_0", "zéro 猫"), ("v1_2", "two"), ("v1_10", "ten")]
    assert "猫".encode() in path.read_bytes()
    assert b"\r" not in path.read_bytes()


def test_mmvet_refuses_two_answers_to_one_question(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="'v1_3' has two answers"):
        write_mmvet(tmp_path / "x.json", {"3": "a", "v1_3": "b"})
    assert list(tmp_path.iterdir()) == []


def test_llava_bench_has_one_line_per_row_in_the_order_of_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    write_llava_bench(path, [row("7", "two\nlines"), row("0"), row("x-1"), row("01")], "small")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["question_id"] for line in lines] == [7, 0, "x-1", "01"]
    answer_id = lines[0].pop("answer_id")
    assert lines[0] == {
        "question_id": 7,
        "prompt": "question 7?",
        "text": "two\nlines",
        "model_id": "small",
        "metadata": {},
    }
    assert list(lines[1]) == [
        "question_id", "prompt", "text", "answer_id", "model_id", "metadata",
    ]  # fmt: skip
    assert len(answer_id) == 22


def test_llava_bench_answer_ids_are_unique_and_reproducible(tmp_path: Path) -> None:
    def ids(rows: list[AnsweredQuestion], model_id: str) -> list[str]:
        write_llava_bench(tmp_path / "a.jsonl", rows, model_id)
        text = (tmp_path / "a.jsonl").read_text(encoding="utf-8")
        return [json.loads(line)["answer_id"] for line in text.splitlines()]

    rows = [row("1"), row("2"), row("3", "a dog")]
    assert ids(rows, "m") == ids(rows, "m")
    assert len({*ids(rows, "m"), *ids(rows, "n"), *ids([row("3", "a cow")], "m")}) == 7


def test_llava_bench_refuses_a_question_that_occurs_twice(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="would occur twice"):
        write_llava_bench(tmp_path / "a.jsonl", [row("1"), row("1")], "m")


def test_vizwiz_lists_normalised_answers_by_image(tmp_path: Path) -> None:
    path = tmp_path / "upload.json"
    answers = {"VizWiz_test_00000010.jpg": "Ten", "VizWiz_test_00000002.jpg": "UNANSWERABLE"}
    write_vizwiz(path, answers, normalise=lower)
    assert read(path) == [
        {"image": "VizWiz_test_00000002.jpg", "answer": "unanswerable"},
        {"image": "VizWiz_test_00000010.jpg", "answer": "ten"},
    ]


def test_scienceqa_has_indices_and_texts_by_problem(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_scienceqa(path, {"11": 1, "4": -1}, {"4": "no idea", "11": "B"})
    assert read(path) == {
        "acc": None,
        "correct": None,
        "count": None,
        "results": {"4": -1, "11": 1},
        "outputs": {"4": "no idea", "11": "B"},
    }
    assert list(read(path)["results"]) == ["4", "11"]


def test_scienceqa_has_the_accuracy_if_the_correct_answers_are_known(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    texts = dict.fromkeys("1234", "A")
    write_scienceqa(
        path, {"1": 0, "2": 1, "3": -1, "4": 2}, texts, correct={"1": 0, "2": 0, "3": 0, "4": 2}
    )
    result = read(path)
    assert (result["acc"], result["correct"], result["count"]) == (50.0, 2, 4)


def test_scienceqa_refuses_incomplete_or_impossible_answers(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(TaskError, match="problem '2' lacks"):
        write_scienceqa(path, {"1": 0}, {"1": "A", "2": "B"})
    with pytest.raises(TaskError, match="problem '3' lacks"):
        write_scienceqa(path, {"1": 0, "3": 0}, {"1": "A", "3": "A"}, correct={"1": 0})
    with pytest.raises(TaskError, match="problem '1' has choice 26"):
        write_scienceqa(path, {"1": 26}, {"1": "F"})
    with pytest.raises(TaskError, match="problem '1' has choice -2"):
        write_scienceqa(path, {"1": -2}, {"1": "?"})
    assert not path.exists()


def test_the_same_answers_in_another_order_give_the_same_bytes(tmp_path: Path) -> None:
    answers = {str(number): f"text {number}" for number in range(30)}
    reordered = dict(reversed(answers.items()))
    letters = dict.fromkeys(answers, 1)
    first, second = tmp_path / "first", tmp_path / "second"
    write_mmvet(first, answers)
    write_mmvet(second, reordered)
    assert first.read_bytes() == second.read_bytes()
    write_vizwiz(first, answers, normalise=lower)
    write_vizwiz(second, reordered, normalise=lower)
    assert first.read_bytes() == second.read_bytes()
    write_scienceqa(first, letters, answers)
    write_scienceqa(second, dict(reversed(letters.items())), reordered)
    assert first.read_bytes() == second.read_bytes()


def test_without_answers_no_file_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(TaskError, match=r"no answers for .*x\.json"):
        write_mmvet(path, {})
    with pytest.raises(TaskError, match="no answers for"):
        write_llava_bench(path, [], "m")
    with pytest.raises(TaskError, match="no answers for"):
        write_vizwiz(path, {}, normalise=lower)
    with pytest.raises(TaskError, match="no answers for"):
        write_scienceqa(path, {}, {})
    assert list(tmp_path.iterdir()) == []


def test_an_answer_or_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"x\.json cannot be written"):
        write_mmvet(tmp_path / "x.json", {"0": "a lone surrogate: \ud800"})
    (tmp_path / "file").write_text("")
    with pytest.raises(TaskError, match=r"file/x\.json cannot be written"):
        write_mmvet(tmp_path / "file" / "x.json", {"0": "a"})
