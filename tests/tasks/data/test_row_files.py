"""Which files of a directory have the rows of a split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.data.dataset_rows import read_split, split_names

ROWS = [{"question": f"q {number}?", "answer": "yes"} for number in range(4)]
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS)
SIDE_FILES: dict[str, Any] = {
    "dataset_infos.json": {"default": {"features": {"question": {"_type": "Value"}}}},
    "croissant.json": {"@type": "sc:Dataset", "name": "x"},
    "id2label.json": {"0": "cat"},
    "labels.json": ["cat", "dog"],
    "numbers.json": [1, 2],
    "nothing.json": None,
}


def write_parquet(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(ROWS), file)


@pytest.mark.parametrize("name", SIDE_FILES)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_side_file_is_no_split(tmp_path: Path, name: str, indent: int | None) -> None:
    (tmp_path / name).write_text(json.dumps(SIDE_FILES[name], indent=indent))
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert split_names(str(tmp_path)) == ["train"]
    assert len(read_split(str(tmp_path), "train")) == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("._train.jsonl", "\0\0"),  # of macOS, on other file systems
        (".train.jsonl.part.csv", "question\n"),
        ("state.json", '{"step": 3}'),  # of another program
        ("dataset_dict.json", '{"splits": null}'),
        ("train.jsonl.sha256", "0"),
        ("README.md", "a,b"),
    ],
)
def test_other_files_beside_the_rows_are_ignored(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "train.jsonl").write_text(LINES)
    (tmp_path / ".cache").mkdir()
    assert split_names(str(tmp_path)) == ["train"]
    assert len(read_split(str(tmp_path), "train")) == 4


def test_rows_beside_the_directory_data_do_not_hide_its_splits(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(LINES)
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert split_names(str(tmp_path)) == ["metadata", "train"]
    assert len(read_split(str(tmp_path), "train")) == 4


@pytest.mark.parametrize("name", ["train.JSONL", "train.json", "train.CSV", "train.Parquet"])
def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path, name: str) -> None:
    csv_lines = "question,answer\n" + "q?,yes\n" * 4
    (tmp_path / name).write_text(csv_lines if name.endswith("CSV") else LINES)
    if name.endswith("Parquet"):
        write_parquet(tmp_path / name)
    assert split_names(str(tmp_path)) == ["train"]
    assert len(read_split(str(tmp_path / name), "train")) == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train.csv", "train.parquet"], "several files: train.csv, train.parquet"),
        (["train.parquet", "data/train.parquet"], "files: train.parquet, data/train.parquet"),
        (["train.parquet", "train-00000-of-00001.parquet"], "several files: "),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"], "several files: "),
        (["train-00001-of-00003.parquet", "train-00002-of-00003.parquet"], "shards 0 to 2, but"),
        (["train-00000-of-00002.parquet"], "shards 0 to 1, but has train-00000-of-00002"),
        (
            [f"train-0000{n}-of-00002-{h * 16}.parquet" for n in "01" for h in "ab"],
            "should have shards 0 to 1, but has .* and 1 more",
        ),
    ],
)
def test_files_that_are_not_the_shards_of_one_split_are_refused(
    tmp_path: Path, names: list[str], message: str
) -> None:
    for name in names:
        write_parquet(tmp_path / name)
    with pytest.raises(TaskError, match=f"split 'train' .*{message}"):
        read_split(str(tmp_path), "train")


def test_a_download_may_have_a_directory_for_each_configuration(tmp_path: Path) -> None:
    for name in ("FULL", "IMG"):
        write_parquet(tmp_path / name / "train-00000-of-00001.parquet")
    assert split_names(str(tmp_path), "IMG") == ["train"]
    assert read_split(str(tmp_path), "train", "IMG").directory == tmp_path / "IMG"
    with pytest.raises(TaskError, match=r"has no split 'train'; it has no parquet") as caught:
        read_split(str(tmp_path), "train")
    assert caught.value.hint == f"Set task.data to {tmp_path / 'FULL'}."
