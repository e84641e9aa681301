"""Tasks from rows of benchmarks and of the user; messages name unusable rows."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image, ImageFile

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import DataTask, Split, grade_answer, validate_task
from tests.tasks.row_tasks import benchmark_task, rows_with_images, write_rows


@pytest.mark.parametrize("name", ["scienceqa", "vizwiz", "mmvet", "llava-bench"])
def test_the_splits_of_every_benchmark_share_no_image(drawn: Path, name: str) -> None:
    task = validate_task(benchmark_task(drawn, name))
    assert [len(task.samples(split)) for split in Split] == [16, 8, 20]
    assert benchmark_task(drawn, name).digest == task.digest
    assert benchmark_task(drawn, name, seed=1).digest != task.digest
    pictures = {
        split: {p.tobytes() for s in task.samples(split) if (p := s.load_image()) is not None}
        for split in Split
    }
    assert not pictures[Split.PROXY] & (pictures[Split.TEST] | pictures[Split.VALIDATION])
    assert not pictures[Split.VALIDATION] & pictures[Split.TEST]
    for sample in task.samples(Split.TEST):
        assert sample.rule is not None
        right = sample.targets[-1] if sample.is_open_ended else "ABCDE"[sample.answer or 0]
        assert grade_answer(sample, right) > 0
        assert grade_answer(sample, "qwerty") == 0


def test_rows_without_answers_can_be_evaluated_but_not_searched(drawn: Path) -> None:
    sources = dict.fromkeys(Split, "test")
    message = r"proxy sample 'VizWiz_test_.*' \(.*test\.parquet, row \d+\) has no answer"
    with pytest.raises(TaskError, match=message):
        validate_task(benchmark_task(drawn, "vizwiz", sources=sources))
    rows = benchmark_task(drawn, "vizwiz", sources={"test": "test"}).all_rows(Split.TEST)
    assert rows
    assert not any(sample.targets for sample in rows)


def test_a_few_rows_in_a_file_are_enough(tmp_path: Path) -> None:
    task = DataTask("qa", write_rows(tmp_path, rows_with_images(tmp_path, 40)), proxy=24)
    validate_task(task)
    assert [len(task.samples(split)) for split in Split] == [24, 3, 13]
    assert task.unused_rows == (0, 40)
    assert DataTask("qa", task.data, proxy=8, validation=6, test=6).unused_rows == (20, 40)
    sample = task.samples(Split.PROXY)[0]
    assert (sample.is_open_ended, sample.question[:2], grade_answer(sample, "Yes.")) == (
        True,
        "q ",
        1.0,
    )


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    rows = [
        {
            "photo": row["image"],
            "ask": row["question"],
            "report_stage": ["yes", "yeah"],
            "kind": "x",
        }
        for row in rows_with_images(tmp_path, 20)
    ]
    columns = {"image": "photo", "question": "ask", "answer": "report_stage", "stratum": "kind"}
    task = DataTask("qa", write_rows(tmp_path, rows), columns=columns, proxy=8)
    sample = task.samples(Split.TEST)[0]
    assert (sample.targets, sample.subsets) == (("yes", "yeah"), ("x",))
    assert sample.load_image() is not None


def test_rows_without_images_are_grouped_by_their_questions(tmp_path: Path) -> None:
    rows = [{"question": f"q {number // 2}?", "answer": "yes"} for number in range(40)]
    task = validate_task(
        DataTask("qa", write_rows(tmp_path, rows), proxy=10, validation=6, test=6)
    )
    asked = [{s.question for s in task.samples(split)} for split in Split]
    assert not asked[0] & asked[1]
    assert not (asked[0] | asked[1]) & asked[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "gone.png"}, r"line 4: image 'gone\.png' is not a file beside the rows or in "),
        ({"image": "A" * 9999}, r"line 4: image 'A{50,60}\.\.\.A{50,60}' is not a file beside"),
        ({"question": None}, "line 4: question is None, which is not a text"),
        ({"question": " "}, "line 4: question is empty"),
        ({"answer": ""}, "line 4: answer is empty"),
        ({"choices": ["a", "b"], "answer": "c"}, "line 4: answer 'c' is outside its 2 choices"),
        ({"choices": ["a"], "answer": "a"}, "line 4: choices has 1 entries, but needs 2"),
        ({"id": "7"}, "line 8: id '7' is also that of line 4"),
        ({"id": ["7"]}, r"line 4: id is \['7'\], which is not a text or a number"),
        ({"id": {"a": 1}}, "line 4: id is {'a': 1}, which is not a text or a number"),
        ({"id": math.nan}, "line 4: id is nan, which is not a text or a number"),
        ({"choices": 0}, "line 4: choices is 0, which is not a list of texts"),
        ({"choices": False}, "line 4: choices is False, which is not a list of texts"),
        ({"choices": {}}, "line 4: choices is {}, which is not a list of texts"),
        (
            {"choices": list("pqrst"), "answer": "(C)"},
            r"line 4: answer '\(C\)' is outside its 5 choices \(0 to 4, A to E, or their texts\)",
        ),
        ({"choices": ["p", "q"], "answer": "b"}, r"line 4: answer 'b' is outside .*, A to B, or"),
        ({"image": {"bytes": "abc"}}, "line 4: image has the bytes 'abc', which are not bytes"),
        ({"image": {"bytes": 5}}, "line 4: image has the bytes 5, which are not bytes"),
        ({"image": {"bytes": 1.5}}, r"line 4: image has the bytes 1\.5, which are not bytes"),
        ({"image": {"bytes": [137, 80]}}, r"line 4: image has the bytes \[137, 80\], which are"),
        ({"image": [{"bytes": {}}]}, "line 4: image has the bytes {}, which are not bytes"),
        ({"image": [["a.png"]]}, r"line 4: image is \['a.png'\], which is not an image"),
        ({"image": "empty.png"}, "line 4: image 'empty.png' is an empty file"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = rows_with_images(tmp_path, 20)
    rows = [{"id": str(number), **row} for number, row in enumerate(rows)]
    rows[3] |= change
    (tmp_path / "empty.png").touch()
    with pytest.raises(TaskError, match=rf"mine\.jsonl, {message}") as caught:
        DataTask("qa", write_rows(tmp_path, rows), proxy=8).samples(Split.PROXY)
    cure = "Fix these rows, or remove them."
    if change.get("answer") == "":
        cure = "Fix these rows, remove them, or set quality.measure"
    assert str(caught.value.hint).startswith(cure)
    assert "\n" not in str(caught.value)


def test_three_bad_rows_are_named_and_the_others_counted(tmp_path: Path) -> None:
    rows = rows_with_images(tmp_path, 20)
    for number in range(5, 10):
        rows[number]["question"] = ""
    message = r"mine\.jsonl, line 6: question is empty; line 7: .*; line 8: .* is empty; 2 more\."
    with pytest.raises(TaskError, match=message):
        DataTask("qa", write_rows(tmp_path, rows), proxy=8).samples(Split.PROXY)


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_an_image_that_cannot_be_opened_is_named(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # lmms-eval, where a test of this process has imported it, lets Pillow open cut images.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    rows = rows_with_images(tmp_path, 20)
    task = DataTask("qa", write_rows(tmp_path, rows), proxy=8)
    sample = task.samples(Split.PROXY)[0]
    file = tmp_path / rows[int(sample.id.rpartition("-")[2])]["image"]
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:45], "text": b"no picture", "empty": b""}[damage])
    line = int(sample.id.rpartition("-")[2]) + 1
    name = rf"'{file.name}' of sample '{sample.id}' \(.*mine\.jsonl, line {line}\)"
    message = f"The image {name} cannot be opened"
    with pytest.raises(TaskError, match=message) as caught:
        sample.load_image()
    assert "object at 0x" not in str(caught.value)


def test_a_sixteen_bit_image_is_scaled_to_eight_bits(tmp_path: Path) -> None:
    rows = rows_with_images(tmp_path, 20)
    deep = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096
    for number, row in enumerate(rows):
        Image.fromarray(deep + number).save(tmp_path / row["image"])
    sample = DataTask("qa", write_rows(tmp_path, rows), proxy=8).samples(Split.PROXY)[0]
    picture = sample.load_image()
    assert picture is not None
    assert (np.asarray(picture) == (deep >> 8)[:, :, None]).all()


def test_a_missing_column_is_named_with_the_existing_ones(drawn: Path) -> None:
    columns = {"question": "frage"}
    with pytest.raises(TaskError, match=r"no column 'frage'; it has .*choices.*task.columns"):
        benchmark_task(drawn, "scienceqa", columns=columns).samples(Split.PROXY)
    with pytest.raises(TaskError, match="names 'frage', which task 'scienceqa' does not have"):
        benchmark_task(drawn, "scienceqa", columns={"frage": "question"}).samples(Split.PROXY)


def test_an_image_of_the_test_split_is_never_in_the_proxy(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn / "scienceqa", tmp_path / "leaky")
    dataset = datasets.load_from_disk(str(tmp_path / "leaky"))
    leaky = datasets.concatenate_datasets([dataset["train"], dataset["test"]])
    dataset["train"] = leaky
    dataset.save_to_disk(tmp_path / "again")
    task = DataTask("scienceqa", str(tmp_path / "again"), proxy=4096, validation=1000, test=1000)
    taken = {sample.group for sample in task.samples(Split.TEST)}
    proxy = task.samples(Split.PROXY)
    assert len(task.samples(Split.TEST)) == 400
    assert 0 < len(proxy) <= 300
    assert not taken & {sample.group for sample in proxy}
