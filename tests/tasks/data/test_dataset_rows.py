"""Reading of datasets from files, directories and the hub; messages name what is unusable."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from PIL import Image

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import DataTask, Split, TaskOptions
from effllava_optuna.tasks.data import dataset_rows
from effllava_optuna.tasks.data.dataset_rows import (
    DatasetRows,
    read_split,
    split_names,
)
from effllava_optuna.tasks.data.row_parsing import parse_rows
from effllava_optuna.tasks.data.stored_image import StoredImage
from effllava_optuna.tasks.schemas import UserRows
from tests.tasks.row_tasks import benchmark_task, write_rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "a", "answer": "b"}\n{"question": "\xff"}\n', "line 2 is not valid UTF-8"),
        (b'{"question": "a", "answer": "b"}\n{"question": \n', "line 2 is not valid JSON"),
        (
            b'{"question": "a", "answer": "b"}\n[1]\n',
            "line 2 is not valid JSON: it is not an object",
        ),
        (b"", "mine.jsonl has no rows"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.jsonl").write_bytes(content)
    with pytest.raises(TaskError, match=message) as caught:
        read_split(str(tmp_path / "mine.jsonl"), "train")
    assert "\n" not in str(caught.value)


def test_cells_of_a_csv_stay_texts(tmp_path: Path) -> None:
    answers = ["3", "007", "1.10", "None", "NA", "", "true", '"a, b"', "2020-01-01", "é"]
    lines = ["question,answer", *(f"q?,{answer}" for answer in answers)]
    file = tmp_path / "mine.csv"
    file.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    read = [row["answer"] for row in read_split(str(file), "train").iterate(["answer"])]
    assert read == [answer.strip('"') for answer in answers]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"question,answer\na,b\na,b,c\n", "line 3 does not have as many cells as the first"),
        (b"question,answer\na,b\na\n", "line 3 does not have as many cells as the first"),
        (b"question,answer\n", "mine.csv has no rows"),
        (b"", "mine.csv has no rows"),
        (b"question,answer\n\xe9,b\n", "line 2 is not valid UTF-8: it has the byte 0xe9"),
    ],
)
def test_a_bad_csv_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.csv").write_bytes(content)
    with pytest.raises(TaskError, match=message) as caught:
        read_split(str(tmp_path / "mine.csv"), "train")
    assert "\n" not in str(caught.value)


def test_texts_that_look_like_dates_stay_texts(tmp_path: Path) -> None:
    rows = [{"question": "when?", "answer": [f"2020-01-{day}"]} for day in range(10, 30)]
    read = read_split(write_rows(tmp_path, rows), "train")
    assert [row["answer"] for row in read.iterate(["answer"])] == [row["answer"] for row in rows]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    read = read_split(str(tmp_path / "mine.json"), "train")
    assert [row["answer"] for row in read.iterate(["answer"])] == [row["answer"] for row in rows]


def test_an_error_of_datasets_becomes_one_line_with_its_cause(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jsonl").write_text('{"question": "a", "question": "b"}\n')
    with pytest.raises(TaskError, match="specified twice"):
        read_split(str(tmp_path / "mine.jsonl"), "train")
    assert capfd.readouterr().err == ""


def test_the_layout_of_a_download_from_the_hub_is_supported(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"question": ["a?"] * 20, "answer": ["b"] * 20})
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "train-00000-of-00001-0123456789abcdef.parquet")
    rows.select(range(3)).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    assert split_names(str(tmp_path)) == ["test", "train"]
    assert len(read_split(str(tmp_path), "train")) == 20


def test_a_missing_split_is_named_with_the_existing_ones(drawn: Path) -> None:
    with pytest.raises(TaskError, match=r"no split 'dev'; it has train, validation, test"):
        benchmark_task(drawn, "scienceqa", sources={"proxy": "dev"}).samples(Split.PROXY)
    with pytest.raises(TaskError, match=r"no split 'dev'; it has test, val"):
        benchmark_task(drawn, "vizwiz", sources={"proxy": "dev"}).samples(Split.PROXY)


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
    for place, message in {
        "d": r"split 'validation', is empty",
        "files": r"validation\.parquet has no rows",
    }.items():
        with pytest.raises(TaskError, match=message):
            DataTask("qa", str(tmp_path / place), proxy=8).samples(Split.PROXY)


@pytest.mark.parametrize("data", ["nowhere", "./nowhere", "nowhere.parquet", "/no/where/at/all"])
def test_a_missing_path_is_refused_without_a_request_to_the_hub(data: str) -> None:
    with pytest.raises(TaskError, match="there is no such file or directory"):
        DataTask("qa", data).samples(Split.PROXY)


@pytest.mark.parametrize("data", ["x" * 5000, "/" + "x" * 300, "\0", "a/" + "x" * 5000 + ".csv"])
@pytest.mark.parametrize("config", [None, "y" * 5000])
def test_a_name_that_no_file_can_have_is_refused_in_a_short_line(
    data: str, config: str | None
) -> None:
    for read in (split_names, lambda data, config: read_split(data, "train", config)):
        with pytest.raises(TaskError, match=r"task\.data = ") as caught:
            read(data, config)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", "{", "state.json: it is not valid JSON: "),
        ("dataset_dict.json", "{'splits': []}", "dataset_dict.json: it is not valid JSON: "),
        ("state.json", '{"_data_files": [{"name": "a"}]}', "state.json: it names no files"),
        ("state.json", '{"_data_files": "a.arrow"}', "state.json: it names no files"),
        ("state.json", '{"_data_files": ["a.arrow"]}', "state.json: it names no files"),
        ("dataset_dict.json", '{"splits": "train"}', "dataset_dict.json: it names no splits"),
        ("dataset_dict.json", '{"splits": [1]}', "dataset_dict.json: it names no splits"),
    ],
)
def test_a_damaged_list_of_files_is_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TaskError, match=message):
        read_split(str(tmp_path), "train")


def test_the_message_about_an_unreachable_hub_has_a_cure(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"'derek-thomas/ScienceQA' cannot be read") as caught:
        DataTask("scienceqa").samples(Split.PROXY)
    assert "task.data = DIR" in caught.value.hint
    assert "\n" not in str(caught.value)


def test_rows_and_images_of_the_hub_are_read_through_datasets(tmp_path: Path) -> None:
    """`datasets` reads a directory as it reads a repository of the hub."""
    images = [Image.new("RGB", (2, 2), (number, 0, 0)) for number in range(4)]
    columns = {"image": images, "answer": list("abcd")}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "data" / "train.parquet")
    rows = dataset_rows._read_hub(str(tmp_path), "train", None)
    assert dataset_rows._hub_splits(str(tmp_path), None) == ["train"]
    assert (len(rows), rows.columns) == (4, ("image", "answer"))
    assert list(rows.iterate(["answer"]))[2] == {"answer": "c"}
    assert StoredImage(rows, 3, "image", tmp_path).open().getpixel((0, 0)) == (3, 0, 0)


def test_a_number_of_a_json_file_on_the_hub_that_may_be_a_text_is_refused(tmp_path: Path) -> None:
    """The JSON builder of `datasets` stores the text "1" of such a column as a number."""
    lines = [
        {"question": f"q {number}?", "choices": ["x", "y", "1"], "answer": answer}
        for number, answer in enumerate(("1", 0, "x", 1))
    ]
    write_rows(tmp_path, lines, "train.jsonl")
    rows = dataset_rows._read_hub(str(tmp_path), "train", None)
    schema = UserRows(TaskOptions())
    with pytest.raises(TaskError, match="hub, row 1: answer 1 may be the index") as caught:
        parse_rows(DatasetRows("hub", rows, tmp_path), schema, {})
    assert "row 2:" not in str(caught.value)
    assert "row 3:" not in str(caught.value)
