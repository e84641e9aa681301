"""Rows of benchmarks, and of one's own, become samples; bad ones are named."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import DataTask, Options, Split, checked, grade
from effllava_optuna.tasks.rows import read_rows, splits_of

NAMES = {
    "scienceqa": "scienceqa",
    "vizwiz": "vizwiz",
    "mmvet": "mmvet",
    "llava-bench": "llava-bench",
}


def task_of(drawn: Path, name: str, **more: Any) -> DataTask:
    sizes = {"proxy": 16, "validation": 8, "test": 20} | more
    return DataTask(name, str(drawn / name), **sizes)


@pytest.mark.parametrize("name", NAMES)
def test_every_schema_gives_samples_whose_splits_share_nothing(drawn: Path, name: str) -> None:
    task = checked(task_of(drawn, name))
    assert [len(task.samples(split)) for split in Split] == [16, 8, 20]
    assert task_of(drawn, name).digest == task.digest
    assert task_of(drawn, name, seed=1).digest != task.digest
    pictures = {
        split: {p.tobytes() for s in task.samples(split) if (p := s.picture()) is not None}
        for split in Split
    }
    assert not pictures[Split.PROXY] & (pictures[Split.TEST] | pictures[Split.VALIDATION])
    assert not pictures[Split.VALIDATION] & pictures[Split.TEST]
    for sample in task.samples(Split.TEST):
        assert sample.rule is not None
        right = sample.targets[-1] if sample.open else "ABCDE"[sample.answer or 0]
        assert grade(sample, right) > 0
        assert grade(sample, "qwerty") == 0


def test_scienceqa_is_asked_as_llava_asks(drawn: Path) -> None:
    rows = datasets.load_from_disk(str(drawn / "scienceqa"))["test"]
    task = task_of(drawn, "scienceqa", test=len(rows))
    samples = task.samples(Split.TEST)
    assert [sample.id for sample in samples] == [f"test-{i:05d}" for i in range(len(rows))]
    for sample, row in zip(samples, rows, strict=True):
        context = f"Context: {row['hint']}\n" if row["hint"] else ""
        options = "\n".join(f"{'ABCDE'[i]}. {text}" for i, text in enumerate(row["choices"]))
        assert sample.question == (
            f"{context}{row['question']}\n{options}\n"
            "Answer with the option's letter from the given choices directly."
        )
        assert (sample.answer, sample.right) == (row["answer"], "ABCDE"[row["answer"]])
        assert (sample.image is None) == (row["image"] is None)
        grade_ = int(row["grade"].removeprefix("grade"))
        assert set(sample.subsets) == {
            {"natural": "NAT", "social": "SOC", "language": "LAN"}[row["subject"].split()[0]],
            "G1-6" if grade_ <= 6 else "G7-12",
            *(["TXT"] if row["hint"] else []),
            *(["IMG"] if row["image"] else []),
            *([] if row["hint"] or row["image"] else ["NO"]),
        }
    found = Counter(name for sample in samples for name in sample.subsets)
    assert set(found) == {"NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12"}
    assert found["NAT"] + found["SOC"] + found["LAN"] == len(rows)
    assert 0.2 < task.chance < 0.5


def test_vizwiz_has_ten_answers_the_most_frequent_first(drawn: Path) -> None:
    for sample in task_of(drawn, "vizwiz").samples(Split.PROXY):
        counts = Counter(target.lower() for target in sample.targets)
        assert len(sample.targets) == 10
        assert counts[sample.right.lower()] == max(counts.values())
        assert sample.question.endswith(
            "\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
            "Answer the question using a single word or phrase."
        )
        assert sample.rule is not None
        assert sample.rule.constant == "unanswerable"


def test_answers_with_a_confidence_beside_them_are_answers(tmp_path: Path) -> None:
    told = [{"answer": "cat", "answer_confidence": "yes"}] * 6 + [{"answer": "dog"}] * 4
    rows = [
        {"image": row["image"], "question": row["question"], "answers": told}
        for row in pictured(tmp_path, 12)
    ]
    sample = DataTask("vizwiz", write(tmp_path, rows), proxy=8).samples(Split.PROXY)[0]
    assert sample.targets == ("cat",) * 6 + ("dog",) * 4


def test_rows_without_answers_can_be_asked_but_not_searched(drawn: Path) -> None:
    sources = dict.fromkeys(Split, "test")
    with pytest.raises(TaskError, match=r"proxy sample 'VizWiz_test_.*' has no answer"):
        checked(task_of(drawn, "vizwiz", sources=sources))
    everything = task_of(drawn, "vizwiz", sources={"test": "test"}).everything(Split.TEST)
    assert everything
    assert not any(sample.targets for sample in everything)


def test_an_mmvet_reference_reads_as_text_and_grades_as_it_is_written(drawn: Path) -> None:
    task = task_of(drawn, "mmvet")
    joined = [s for s in task.everything(Split.TEST) if "<AND>" in s.targets[-1]]
    assert joined
    for sample in joined:
        assert "<" not in sample.right
        assert grade(sample, sample.right) == 1.0
    assert any(len(sample.subsets) > 1 for sample in joined)


def test_the_harness_and_the_instruction_are_options(drawn: Path) -> None:
    options = Options(harness="lmms-eval", instruction="Letter?", system="Be brief.", new_tokens=3)
    sample = task_of(drawn, "scienceqa", options=options).samples(Split.PROXY)[0]
    assert sample.question.endswith("\nLetter?")
    assert sample.system == "Be brief."
    assert sample.rule is not None
    assert (sample.rule.name, sample.rule.new_tokens) == (
        "ScienceQA accuracy (lmms-eval parsing)",
        3,
    )
    assert grade(sample, f"The answer is {sample.right}.") == 0
    plain = task_of(drawn, "scienceqa").samples(Split.PROXY)[0]
    assert grade(plain, f"The answer is {plain.right}.") == 1
    with pytest.raises(TaskError, match=r"task.harness = 'ours' is unknown.*Use one of llava"):
        task_of(drawn, "scienceqa", options=Options(harness="ours")).samples(Split.PROXY)


# One's own rows.


def write(where: Path, rows: list[dict[str, Any]], name: str = "mine.jsonl") -> str:
    file = where / name
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file)


def pictured(where: Path, count: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(where / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": f"q {number}?", "answer": "yes"})
    return rows


def test_a_few_rows_in_a_file_are_enough(tmp_path: Path) -> None:
    task = DataTask("qa", write(tmp_path, pictured(tmp_path, 40)), proxy=24)
    checked(task)
    assert [len(task.samples(split)) for split in Split] == [24, 3, 13]
    assert task.left_out == (0, 40)
    assert DataTask("qa", task.data, proxy=8, validation=6, test=6).left_out == (20, 40)
    sample = task.samples(Split.PROXY)[0]
    assert (sample.open, sample.question[:2], grade(sample, "Yes.")) == (True, "q ", 1.0)


def test_closed_questions_may_name_the_right_choice_in_three_ways(tmp_path: Path) -> None:
    rows = pictured(tmp_path, 30)
    for row, answer in zip(rows, (1, "B", "blue") * 10, strict=True):
        row |= {"choices": ["red", "blue"], "answer": answer}
    data = DataTask("qa", write(tmp_path, [{**r, "answer": str(r["answer"])} for r in rows]))
    with pytest.raises(TaskError, match="row 0: answer '1' is outside its 2 choices"):
        data.samples(Split.PROXY)
    rows = [{**row, "answer": 1} for row in rows]
    task = DataTask("qa", write(tmp_path, rows), proxy=10, validation=5, test=5)
    assert {sample.right for sample in task.samples(Split.TEST)} == {"B"}
    named = [
        {**row, "answer": answer} for row, answer in zip(rows, ("B", "blue") * 15, strict=True)
    ]
    again = DataTask("qa", write(tmp_path, named, "b.jsonl"), proxy=10, validation=5, test=5)
    assert {sample.answer for sample in again.samples(Split.TEST)} == {1}


@pytest.mark.parametrize(
    ("choices", "answer", "told"),
    [(["B", "A"], "A", "'A' may be A or B"), (["x", "y", "x"], "x", "'x' may be A or C")],
)
def test_a_choice_that_is_named_in_two_ways_is_refused(
    tmp_path: Path, choices: list[str], answer: str, told: str
) -> None:
    rows = [row | {"choices": choices, "answer": answer} for row in pictured(tmp_path, 12)]
    with pytest.raises(TaskError, match=f"row 0: answer {told}"):
        DataTask("qa", write(tmp_path, rows), proxy=8).samples(Split.PROXY)


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    rows = [
        {"photo": row["image"], "ask": row["question"], "say": ["yes", "yeah"], "kind": "x"}
        for row in pictured(tmp_path, 20)
    ]
    columns = {"image": "photo", "question": "ask", "answer": "say", "stratum": "kind"}
    task = DataTask("qa", write(tmp_path, rows), columns=columns, proxy=8)
    sample = task.samples(Split.TEST)[0]
    assert (sample.targets, sample.subsets) == (("yes", "yeah"), ("x",))
    assert sample.picture() is not None


def test_rows_without_pictures_are_told_apart_by_their_questions(tmp_path: Path) -> None:
    rows = [{"question": f"q {number // 2}?", "answer": "yes"} for number in range(40)]
    task = checked(DataTask("qa", write(tmp_path, rows), proxy=10, validation=6, test=6))
    asked = [{s.question for s in task.samples(split)} for split in Split]
    assert not asked[0] & asked[1]
    assert not (asked[0] | asked[1]) & asked[2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image": "gone.png"}, r"row 3: image 'gone\.png' is no file beside the rows or in imag"),
        ({"image": "A" * 9999}, r"row 3: image 'A{80}\.\.\.' is no file beside the rows"),
        ({"question": None}, "row 3: question is None, which is no text"),
        ({"question": " "}, "row 3: question is empty"),
        ({"answer": ""}, "row 3: answer is empty"),
        ({"choices": ["a", "b"], "answer": "c"}, "row 3: answer 'c' is outside its 2 choices"),
        ({"choices": ["a"], "answer": "a"}, "row 3: choices has 1 entries, 2 are needed"),
        ({"id": "7"}, "row 7: id '7' is that of row 3, too"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    rows = pictured(tmp_path, 20)
    rows = [{"id": str(number), **row} for number, row in enumerate(rows)]
    rows[3] |= change
    with pytest.raises(TaskError, match=rf"mine\.jsonl, split 'train': {told}") as caught:
        DataTask("qa", write(tmp_path, rows), proxy=8).samples(Split.PROXY)
    assert caught.value.hint == "Mend these rows (the first one is row 0), or leave them out."
    assert "\n" not in str(caught.value)


def test_three_bad_rows_are_named_and_the_others_counted(tmp_path: Path) -> None:
    rows = pictured(tmp_path, 20)
    for number in range(5, 10):
        rows[number]["question"] = ""
    with pytest.raises(TaskError, match=r"row 5: .*; row 6: .*; row 7: question is empty; 2 more"):
        DataTask("qa", write(tmp_path, rows), proxy=8).samples(Split.PROXY)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_picture_that_cannot_be_opened_is_named(tmp_path: Path, damage: str) -> None:
    rows = pictured(tmp_path, 20)
    task = DataTask("qa", write(tmp_path, rows), proxy=8)
    sample = task.samples(Split.PROXY)[0]
    file = tmp_path / rows[int(sample.id.rpartition("-")[2])]["image"]
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:45], "text": b"no picture", "empty": b""}[damage])
    told = rf"The picture of sample '{sample.id}' cannot be opened"
    with pytest.raises(TaskError, match=told) as caught:
        sample.picture()
    assert "object at 0x" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"question": "a", "answer": "b"}\n{"question": "\xff"}\n', "line 2 is no UTF-8"),
        (b'{"question": "a", "answer": "b"}\n{"question": \n', "line 2 is no JSON"),
        (b'{"question": "a", "answer": "b"}\n[1]\n', "line 2 is no JSON: is no object"),
        (b"", "mine.jsonl, split 'mine', is empty"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "mine.jsonl").write_bytes(content)
    with pytest.raises(TaskError, match=told) as caught:
        read_rows(str(tmp_path / "mine.jsonl"), "train")
    assert "\n" not in str(caught.value)


def test_cells_of_a_csv_are_the_texts_that_they_are(tmp_path: Path) -> None:
    answers = ["3", "007", "1.10", "None", "NA", "", "true", '"a, b"', "2020-01-01", "é"]
    lines = ["question,answer", *(f"q?,{answer}" for answer in answers)]
    file = tmp_path / "mine.csv"
    file.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    read = [row["answer"] for row in read_rows(str(file), "train").texts()]
    assert read == [answer.strip('"') for answer in answers]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"question,answer\na,b\na,b,c\n", "line 3 has not as many cells as the first"),
        (b"question,answer\na,b\na\n", "line 3 has not as many cells as the first"),
        (b"question,answer\n", "mine.csv, split 'mine', is empty"),
        (b"", "mine.csv, split 'mine', is empty"),
        (b"question,answer\n\xe9,b\n", "UnicodeDecodeError: .*can't decode byte 0xe9"),
    ],
)
def test_a_bad_csv_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "mine.csv").write_bytes(content)
    with pytest.raises(TaskError, match=told) as caught:
        read_rows(str(tmp_path / "mine.csv"), "train")
    assert "\n" not in str(caught.value)


def test_texts_that_look_like_dates_stay_texts(tmp_path: Path) -> None:
    rows = [{"question": "when?", "answer": [f"2020-01-{day}"]} for day in range(10, 30)]
    read = read_rows(write(tmp_path, rows), "train")
    assert [row["answer"] for row in read.texts()] == [row["answer"] for row in rows]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    read = read_rows(str(tmp_path / "mine.json"), "train")
    assert [row["answer"] for row in read.texts()] == [row["answer"] for row in rows]


def test_what_datasets_makes_of_a_bad_file_is_told_once_and_with_its_cause(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jsonl").write_text('{"question": "a", "question": "b"}\n')
    with pytest.raises(TaskError, match="specified twice"):
        read_rows(str(tmp_path / "mine.jsonl"), "train")
    assert capfd.readouterr().err == ""


def test_a_download_from_the_hub_is_read_as_it_lies_there(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"question": ["a?"] * 20, "answer": ["b"] * 20})
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "train-00000-of-00001-0123456789abcdef.parquet")
    rows.select(range(3)).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    assert splits_of(str(tmp_path)) == ["test", "train"]
    assert len(read_rows(str(tmp_path), "train")) == 20


def test_a_picture_of_sixteen_bits_is_not_white(tmp_path: Path) -> None:
    rows = pictured(tmp_path, 20)
    deep = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096
    for number, row in enumerate(rows):
        Image.fromarray(deep + number).save(tmp_path / row["image"])
    sample = DataTask("qa", write(tmp_path, rows), proxy=8).samples(Split.PROXY)[0]
    picture = sample.picture()
    assert picture is not None
    assert (np.asarray(picture) == (deep >> 8)[:, :, None]).all()


def test_a_missing_column_is_named_with_those_that_are_there(drawn: Path) -> None:
    columns = {"question": "frage"}
    with pytest.raises(TaskError, match=r"no column 'frage'; it has .*choices.*task.columns"):
        task_of(drawn, "scienceqa", columns=columns).samples(Split.PROXY)
    with pytest.raises(TaskError, match="names 'frage', which task 'scienceqa' does not have"):
        task_of(drawn, "scienceqa", columns={"frage": "question"}).samples(Split.PROXY)


def test_a_split_that_is_not_there_is_named_with_those_that_are(drawn: Path) -> None:
    with pytest.raises(TaskError, match=r"no split 'dev'; it has train, validation, test"):
        task_of(drawn, "scienceqa", sources={"proxy": "dev"}).samples(Split.PROXY)
    with pytest.raises(TaskError, match=r"no split 'dev'; it has test, val"):
        task_of(drawn, "vizwiz", sources={"proxy": "dev"}).samples(Split.PROXY)


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    kinds = {"question": datasets.Value("string"), "answer": datasets.Value("string")}
    empty = datasets.Dataset.from_dict(
        {"question": [], "answer": []}, features=datasets.Features(kinds)
    )
    full = datasets.Dataset.from_dict({"question": ["a?"] * 20, "answer": ["b"] * 20})
    datasets.DatasetDict(train=full, validation=empty, test=full).save_to_disk(tmp_path / "d")
    (tmp_path / "files").mkdir()
    for name in ("train", "test"):
        full.to_parquet(tmp_path / "files" / f"{name}.parquet")
    empty.to_parquet(tmp_path / "files" / "validation.parquet")
    for place in ("d", "files"):
        with pytest.raises(TaskError, match=r"split 'validation', is empty"):
            DataTask("qa", str(tmp_path / place), proxy=8).samples(Split.PROXY)


@pytest.mark.parametrize("data", ["nowhere", "./nowhere", "nowhere.parquet", "/no/where/at/all"])
def test_data_that_is_not_there_is_refused_without_asking_the_hub(data: str) -> None:
    with pytest.raises(TaskError, match="there is no such file or directory"):
        DataTask("qa", data).samples(Split.PROXY)


def test_the_hub_out_of_reach_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"'derek-thomas/ScienceQA' cannot be read") as caught:
        DataTask("scienceqa").samples(Split.PROXY)
    assert "task.data = DIR" in caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_picture_in_test_is_never_in_the_proxy_whatever_the_file_says(
    drawn: Path, tmp_path: Path
) -> None:
    shutil.copytree(drawn / "scienceqa", tmp_path / "leaky")
    found = datasets.load_from_disk(str(tmp_path / "leaky"))
    leaky = datasets.concatenate_datasets([found["train"], found["test"]])
    found["train"] = leaky
    found.save_to_disk(tmp_path / "again")
    task = DataTask("scienceqa", str(tmp_path / "again"), proxy=4096, validation=1000, test=1000)
    taken = {sample.unit for sample in task.samples(Split.TEST)}
    proxy = task.samples(Split.PROXY)
    assert len(task.samples(Split.TEST)) == 400
    assert 0 < len(proxy) <= 300
    assert not taken & {sample.unit for sample in proxy}
