"""Appended records are read again, no matter when the process was killed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from effllava_optuna.errors import StudyError
from effllava_optuna.evaluation.record_file import RecordFile

if TYPE_CHECKING:
    from pathlib import Path

ABOUT = {"split": "test", "limit": 4}


@dataclass(frozen=True)
class Pair:
    id: str
    value: float | None


ONE, TWO = Pair("1", 0.5), Pair("ü\n", None)


def open_records(path: Path, **about: object) -> RecordFile[Pair]:
    return RecordFile(path, Pair, ABOUT | about)


def test_records_are_read_from_a_file_that_was_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.jsonl"
    open_records(path).append([ONE])
    header = path.read_bytes().index(b"\n") + 1
    first = path.stat().st_size
    open_records(path).append([TWO])
    whole = path.read_bytes()
    assert open_records(path).records == {"1": ONE, "ü\n": TWO}
    for length in range(header, len(whole)):  # as a kill leaves it
        path.write_bytes(whole[:length])
        file = open_records(path)
        assert file.records == ({"1": ONE} if length >= first else {})
        file.append([ONE, TWO])
        assert open_records(path).records == {"1": ONE, "ü\n": TWO}


def test_an_empty_file_is_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    open_records(tmp_path / "x").append([ONE])
    assert open_records(tmp_path / "x").records == {"1": ONE}


def test_two_processes_may_append_to_one_file(tmp_path: Path) -> None:
    files = [open_records(tmp_path / "x"), open_records(tmp_path / "x")]
    for file, record in zip(files, (ONE, TWO), strict=True):
        file.append([record])
    assert open_records(tmp_path / "x").records == {"1": ONE, "ü\n": TWO}


def test_records_of_another_evaluation_are_refused_unless_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x"
    open_records(path).append([ONE])
    with pytest.raises(
        StudyError, match=r"x has results of another evaluation: split, more changed\. Use"
    ):
        open_records(path, split="proxy", more=1)
    assert open_records(path).records == {"1": ONE}
    assert RecordFile(path, Pair, {"split": "proxy"}, overwrite=True).records == {}
    assert path.read_text() == '{"about": {"split": "proxy"}}\n'


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "content", ["nonsense", "nonsense\n", "[]\n", '{"id": "1"}\n', '{"about": 1}']
)
def test_a_file_with_other_content_is_refused_and_kept(
    tmp_path: Path, content: str, overwrite: bool
) -> None:
    path = tmp_path / "x"
    path.write_text(content)
    with pytest.raises(StudyError, match=r"x: line 1 is not a record\. Remove the file"):
        RecordFile(path, Pair, ABOUT, overwrite=overwrite)
    assert path.read_text() == content


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"id": "1"}', '{"id": "1", "other": 2}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x"
    open_records(path).append([ONE])
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(StudyError, match=r"x: line 3 is not a record\."):
        open_records(path)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    file = open_records(tmp_path / "x")
    file.append([ONE])
    whole = file.path.read_bytes()
    file.path.unlink()
    file.path.mkdir()  # it cannot be written any more
    with pytest.raises(StudyError, match=r"x cannot be written: .*continues where it stopped"):
        file.append([TWO])
    assert file.records == {"1": ONE}
    file.path.rmdir()
    file.path.write_bytes(whole)
    assert open_records(tmp_path / "x").records == {"1": ONE}
