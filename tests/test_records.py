"""Records of the benchmarks are stored once, sorted, and never lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import script

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.fixture
def records() -> Any:
    return script("_records")


def test_lines_are_sorted_by_key(records: Any, tmp_path: Path) -> None:
    file = tmp_path / "question.jsonl"
    for draw in (10, 9, 0):
        records.add_records(file, {("study", "first", draw): {"draw": draw}})
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["key"] for line in lines] == [["study", "first", draw] for draw in (0, 9, 10)]
    assert records.read_records(file)["study", "first", 9] == {"draw": 9}


def test_an_existing_record_is_not_replaced(records: Any, tmp_path: Path) -> None:
    file = tmp_path / "question.jsonl"
    records.add_records(file, {("a",): {"figure": 1.5}})
    records.add_records(file, {("a",): {"figure": 2.0}, ("b",): {"figure": 3.0}})
    assert records.read_records(file) == {("a",): {"figure": 1.5}, ("b",): {"figure": 3.0}}


def test_a_truncated_last_line_is_ignored_and_replaced(records: Any, tmp_path: Path) -> None:
    file = tmp_path / "question.jsonl"
    records.add_records(file, {("a",): {"figure": 1}, ("b",): {"figure": 2}})
    whole = file.read_text(encoding="utf-8")
    for length in range(whole.index("\n") + 1, len(whole)):
        file.write_text(whole[:length], encoding="utf-8")
        assert [*records.read_records(file)] == [("a",)]
        records.add_records(file, {("b",): {"figure": 2}})
        assert file.read_text(encoding="utf-8") == whole


@pytest.mark.parametrize("line", ["{", "[1]", "{}", '{"key": 3}', ""])
def test_a_complete_line_that_is_not_a_record_is_refused(
    line: str, records: Any, tmp_path: Path
) -> None:
    file = tmp_path / "question.jsonl"
    file.write_text(f'{{"key": ["a"]}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"question\.jsonl, line 2: not a record\. Restore"):
        records.read_records(file)


def test_a_record_that_cannot_be_written_leaves_the_file_as_it_was(
    records: Any, tmp_path: Path
) -> None:
    file = tmp_path / "question.jsonl"
    records.add_records(file, {("a",): {}})
    with pytest.raises(TypeError):
        records.add_records(file, {("b",): {"figure": object()}})
    assert [*records.read_records(file)] == [("a",)]


WRITER = """
import sys
from pathlib import Path

from _records import add_records

file, writer = Path(sys.argv[1]), int(sys.argv[2])
for number in range(20):
    add_records(file, {(writer, number): {"text": "x" * 5000}})
"""


def test_concurrent_processes_lose_no_record(records: Any, tmp_path: Path) -> None:
    file = tmp_path / "question.jsonl"
    command = [sys.executable, "-c", WRITER, str(file)]
    writers = [
        subprocess.Popen([*command, str(writer)], cwd=Path(records.__file__).parent)
        for writer in range(4)
    ]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert [*records.read_records(file)] == [(w, number) for w in range(4) for number in range(20)]


def test_a_store_reads_what_another_process_adds(records: Any, tmp_path: Path) -> None:
    store, record_id = records.RecordStore(tmp_path), records.RecordId("question", ("a", 1))
    assert store.get(record_id) is None
    records.add_records(tmp_path / "question.jsonl", {record_id.key: {"figure": 1}})
    assert store.get(record_id) == {"figure": 1}
    assert str(record_id) == "question a 1"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.jsonl")), ids=lambda file: file.stem)
def test_published_records_have_the_format_of_new_ones(
    file: Path, records: Any, tmp_path: Path
) -> None:
    published = records.read_records(file)
    assert all("provenance" in record for record in published.values())
    records.add_records(tmp_path / file.name, published)
    assert (tmp_path / file.name).read_bytes() == file.read_bytes()
