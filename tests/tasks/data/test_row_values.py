"""Values of rows are those of the file: no reader changes their types, and no cache is read."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import DataTask, Split
from effllava_optuna.tasks.data.dataset_rows import read_split

# Each column has values that a common type of the column would change.
MIXED: list[dict[str, Any]] = [
    {"answer": 1, "id": 7, "extra": None, "choices": ["1", "2"]},
    {"answer": "1", "id": "007", "extra": 1.0, "choices": ["1", "2"]},
    {"answer": True, "id": None, "extra": {"a": "2020-01-01"}, "choices": []},
    {"answer": ["1", 1, None], "id": 2**70, "extra": {"b": [1, "x"]}, "choices": None},
    {"answer": "2020-01-01T10:00:00", "id": 0.1, "extra": [], "choices": ["2020-01-01"]},
    {"answer": " a ", "id": "", "extra": "null", "choices": ["a", None]},
]
FORMATS = ("lines.jsonl", "list.json", "lines.json")


def write_json(file: Path, rows: list[dict[str, Any]]) -> str:
    """Write a list, or one row in each line, as the name of the file says."""
    lines = [json.dumps(row) for row in rows]
    file.write_text(f"[{','.join(lines)}]" if file.stem == "list" else "\n".join(lines))
    return str(file)


def values(data: str, column: str, split: str = "train") -> list[Any]:
    return [row[column] for row in read_split(data, split).iterate([column])]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("column", list(MIXED[0]))
def test_a_column_of_several_types_keeps_each_value(
    tmp_path: Path, name: str, column: str
) -> None:
    read = values(write_json(tmp_path / name, MIXED), column)
    assert [repr(value) for value in read] == [repr(row[column]) for row in MIXED]


@pytest.mark.parametrize("name", FORMATS)
def test_an_index_and_a_text_that_looks_like_one_are_told_apart(tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = [
        {"question": f"q {number}?", "choices": [*"012"[number % 3 :], "3", "4"]}
        for number in range(60)
    ]
    truth = {}
    for number, row in enumerate(rows):
        text = row["choices"][number % 2]
        truth[row["question"]] = number % 2
        row["answer"] = text if number % 4 < 2 else number % 2
    task = DataTask("qa", write_json(tmp_path / name, rows), proxy=30, validation=10, test=20)
    samples = [sample for split in Split for sample in task.samples(split)]
    read = {sample.question.partition("\n")[0]: sample.answer for sample in samples}
    assert read == truth


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 3, {"a": 1}, True, None])
def test_one_unusable_value_is_named_alone(tmp_path: Path, name: str, bad: Any) -> None:
    rows: list[dict[str, Any]] = [
        {"question": f"q {number}?", "answer": "yes"} for number in range(20)
    ]
    rows[7]["answer"] = bad
    message = r"(row|line) 8: answer is [^;]*, which is not a text\."
    with pytest.raises(TaskError, match=message) as error:
        DataTask("qa", write_json(tmp_path / name, rows), proxy=8).samples(Split.PROXY)
    assert not re.search("(row|line) 7", str(error.value))


def test_a_saved_dataset_and_parquet_keep_values_and_missing_ones(tmp_path: Path) -> None:
    columns = {
        "answer": ["1", None, "2020-01-01", "None", " a "],
        "index": [1, None, 3, 2**60, 5],
        "choices": [["1", "2"], None, [], [None], ["2020-01-01"]],
        "nested": [{"a": "1"}, None, {"a": None}, {"a": "x"}, {"a": ""}],
        "number": [0.5, math.nan, None, math.inf, 2.0],
        "flag": [True, None, False, True, False],
    }
    dataset = datasets.Dataset.from_dict(columns)
    dataset.save_to_disk(tmp_path / "saved")
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet", row_group_size=2)
    for data in (str(tmp_path / "saved"), str(tmp_path / "mine.parquet")):
        for name, expected in columns.items():
            assert repr(values(data, name)) == repr(expected)


def test_categories_and_json_columns_are_decoded(tmp_path: Path) -> None:
    kinds = pa.array(["b", "a", "b"]).dictionary_encode()
    columns = {"kind": kinds, "a.b": [1, 2, 3], "a": ["x", "y", "z"]}
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    for name, column in {**columns, "kind": ["b", "a", "b"]}.items():
        assert values(str(tmp_path / "mine.parquet"), name) == column
    mixed = {"answer": [{"a": [1, None]}, ["x", 2], None], "lists": [["a", 1], [], None]}
    features = datasets.Features(answer=datasets.Json(), lists=datasets.List(datasets.Json()))
    dataset = datasets.Dataset.from_dict(mixed, features=features)
    dataset.save_to_disk(tmp_path / "saved")
    dataset.to_parquet(tmp_path / "mixed.parquet")
    for data in ("saved", "mixed.parquet"):
        for name, column in mixed.items():
            assert values(str(tmp_path / data), name) == column


def test_a_number_that_may_be_a_text_in_a_json_column_is_refused(tmp_path: Path) -> None:
    """`datasets` stores the text "1" of a column of several types as the number 1."""
    rows: list[dict[str, Any]] = [
        {"question": f"q {number}?", "choices": ["x", "y", "1"], "answer": "x"}
        for number in range(20)
    ]
    rows[3]["answer"] = "1"
    rows[4]["answer"] = 0
    saved = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    saved.save_to_disk(tmp_path / "saved")
    with pytest.raises(TaskError, match=r"row 4: answer 1 may be the index or the text") as error:
        DataTask("qa", str(tmp_path / "saved"), proxy=8).samples(Split.PROXY)
    assert not re.search("(row|line) 5", str(error.value))


@pytest.mark.parametrize(
    ("choices", "text", "expected"),
    [
        (["1.0", "2.0"], "1.0", "may be the index or the text"),  # stored as the number 1.0
        (["1e0", "1"], "1e0", "may be the index or the text"),
        (["x", "1.50"], "1.50", 1),
        (["0.0", "1.0"], "0.0", 0),
        (["1.5", "x"], "1.50", r"answer 1\.5 is outside its 2 choices"),
    ],
)
def test_a_float_in_a_json_column_may_be_a_text(
    tmp_path: Path, choices: list[str], text: str, expected: int | str
) -> None:
    rows: list[dict[str, Any]] = [
        {"question": f"q {number}?", "choices": choices, "answer": 1} for number in range(20)
    ]
    rows[3]["answer"] = text
    saved = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    saved.save_to_disk(tmp_path / "saved")
    task = DataTask("qa", str(tmp_path / "saved"), proxy=8, validation=4, test=8)
    if isinstance(expected, str):
        with pytest.raises(TaskError, match=f"(row|line) 4: .*{expected}") as error:
            task.samples(Split.PROXY)
        assert not re.search("(row|line) 5", str(error.value))
    else:
        answers = {s.question.split("\n")[0]: s.answer for sp in Split for s in task.samples(sp)}
        assert answers["q 3?"] == expected


def test_an_id_in_a_json_column_is_its_text(tmp_path: Path) -> None:
    ids = ["1.50", 7, "1.5", 7.0, "a"]
    rows = [{"question": f"q {id_}?", "answer": "x", "id": id_} for id_ in ids]
    datasets.Dataset.from_list(rows, on_mixed_types="use_json").save_to_disk(tmp_path / "saved")
    task = DataTask("qa", str(tmp_path / "saved"), proxy=2, validation=1, test=2)
    found = {sample.question: sample.id for split in Split for sample in task.samples(split)}
    assert found == {f"q {id_}?": str(id_) for id_ in ids}


def write_damaged_page(file: Path) -> None:
    table = pa.table({"question": ["q?" * 99] * 9, "answer": ["a"] * 9})
    pq.write_table(table, file, compression="zstd")
    content = bytearray(file.read_bytes())
    content[30:60] = bytes(30)
    file.write_bytes(content)


def write_invalid_unicode(file: Path) -> None:
    texts = [b"q?"] * 6 + [b"\xff?"] + [b"q?"] * 2
    questions = pa.array(texts).view(pa.string())
    pq.write_table(pa.table({"question": questions, "answer": ["a"] * 9}), file)


def write_invalid_json(file: Path) -> None:
    """`datasets` itself stores the text "007" of a column of several types so."""
    answers = pa.array([*['"a"'] * 6, "007", "1", "1"], pa.json_())
    pq.write_table(pa.table({"question": ["q?"] * 9, "answer": answers}), file)


def write_far_date(file: Path) -> None:
    ids = pa.array([0] * 6 + [2**60] + [0] * 2, pa.timestamp("us"))
    table = pa.table({"question": ["q?"] * 9, "answer": ["a"] * 9, "id": ids})
    pq.write_table(table, file)


@pytest.mark.parametrize(
    ("write_file", "message"),
    [
        (write_damaged_page, "row 1: question cannot be read: "),
        (write_invalid_unicode, "row 7: question cannot be read: UnicodeDecodeError: "),
        (write_invalid_json, "row 7: answer cannot be read: JSONDecodeError: "),
        (write_far_date, "row 7: id cannot be read: "),
    ],
)
def test_a_value_that_cannot_be_decoded_is_named(
    tmp_path: Path, write_file: Any, message: str
) -> None:
    write_file(tmp_path / "mine.parquet")
    with pytest.raises(TaskError, match=message) as error:
        DataTask("qa", str(tmp_path / "mine.parquet"), proxy=4).samples(Split.PROXY)
    assert "\n" not in str(error.value)
    assert error.value.hint == "Write the file again, or remove the row."


def test_an_index_that_pandas_stored_as_a_float_is_an_index(tmp_path: Path) -> None:
    """A column of whole numbers with a missing one is a column of floats in pandas."""
    rows = {"question": [f"q {n}?" for n in range(12)], "choices": [["x", "y"]] * 12}
    answers = [1.0] * 12
    pq.write_table(pa.table({**rows, "answer": answers}), tmp_path / "mine.parquet")
    task = DataTask("qa", str(tmp_path / "mine.parquet"), proxy=6)
    assert {sample.answer for sample in task.samples(Split.PROXY)} == {1}
    for bad in (0.5, math.nan, 2.0, -1.0):
        table = pa.table({**rows, "answer": [*answers[:5], bad, *answers[6:]]})
        pq.write_table(table, tmp_path / "mine.parquet")
        with pytest.raises(TaskError, match=r"row 6: answer .* is outside its 2 choices"):
            DataTask("qa", str(tmp_path / "mine.parquet"), proxy=6).samples(Split.PROXY)


def test_shards_of_different_types_keep_their_values(tmp_path: Path) -> None:
    for number, answers in enumerate(([1, 2], ["1", "2"])):
        file = tmp_path / f"train-0000{number}-of-00002.parquet"
        pq.write_table(pa.table({"answer": answers, f"only_{number}": answers}), file)
    assert values(str(tmp_path), "answer") == [1, 2, "1", "2"]
    assert values(str(tmp_path), "only_1") == [None, None, "1", "2"]


def write(file: Path, answer: str) -> None:
    """Write 20 rows in the format of the file's name; a name without suffix is a directory."""
    rows = [{"question": f"q {number}?", "answer": answer} for number in range(20)]
    match file.suffix:
        case ".csv":
            with file.open("w", newline="") as lines:
                writer = csv.DictWriter(lines, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        case "":
            draft = file.parents[1] / "draft"  # `datasets` cannot write to every path
            datasets.Dataset.from_list(rows).save_to_disk(draft)
            shutil.rmtree(file, ignore_errors=True)
            draft.rename(file)
        case _:
            file.write_text("\n".join(json.dumps(row) for row in rows))


FILES = ("mine.jsonl", "mine.json", "mine.csv", "mine.parquet", "saved")


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_same_name_and_time_stamp_is_read_again(tmp_path: Path, name: str) -> None:
    """`datasets` keys its cache by the name and the time stamp of a file (datasets 2956)."""
    file = tmp_path / name
    for answer in ("old", "new"):
        write(file, answer)
        for part in (file, *file.glob("*")):
            os.utime(part, (1_600_000_000, 1_600_000_000))
        assert set(values(str(file), "answer")) == {answer}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("folder", "other"),
    [
        ("exp[1]", "exp1"),
        ("v*", "v2"),
        ("v?", "v2"),
        ("{a,b}", "a"),
        ("**", "deep"),
        ("a::b", "b"),
        ("100%25", "100%"),
        ("#1 a", "#1"),
        ("~", "home"),
        ("file:x", "x"),
        ("tür\u0308 é", "tur"),
    ],
)
def test_a_path_is_no_pattern(tmp_path: Path, name: str, folder: str, other: str) -> None:
    for place, answer in ((folder, "mine"), (other, "other")):
        (tmp_path / place).mkdir()
        write(tmp_path / place / name, answer)
    assert set(values(str(tmp_path / folder / name), "answer")) == {"mine"}
    if name != "saved":
        assert set(values(str(tmp_path / folder), "answer", split="mine")) == {"mine"}


@pytest.mark.parametrize(
    "name", ["a[1].png", "*.png", "b?.png", "{a,b}.png", "a::b.png", "%41.png"]
)
def test_the_name_of_a_picture_is_no_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    for other in ("a1.png", "b1.png", "a.png", "b.png", "A.png"):
        (tmp_path / other).write_bytes(b"other")
    (tmp_path / "images" / name).write_bytes(b"mine")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"image": name}))
    (image,) = read_split(str(file), "train").iterate_images("image")
    assert image.read_bytes() == b"mine"
