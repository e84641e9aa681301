"""Reading of jsonl, json and csv files; messages name the line that cannot be read."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.data.dataset_rows import read_split

ROWS = [{"question": "q\u2028\u00e9?", "answer": "yes"}, {"question": "b?", "answer": "no"}]
CONTENTS = {
    "mine.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "mine.json": json.dumps(ROWS, ensure_ascii=False, indent=1),
    "mine.csv": "question,answer\nq\u2028\u00e9?,yes\nb?,no\n",
}


def read(file: Path) -> list[dict[str, str]]:
    return list(read_split(str(file), "train").iterate(["question", "answer"]))


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_line_ends_change_nothing(
    tmp_path: Path, name: str, mark: bytes, line_end: str
) -> None:
    content = CONTENTS[name].replace("\n", line_end).encode()
    (tmp_path / name).write_bytes(mark + content)
    assert read(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-le", "latin-1"])
def test_another_encoding_is_named_in_one_line(tmp_path: Path, name: str, encoding: str) -> None:
    content = CONTENTS[name].replace("\u2028", "")
    (tmp_path / name).write_bytes(content.encode(encoding))
    with pytest.raises(TaskError, match=rf"{name}: line \d is not valid UTF-8: ") as caught:
        read(tmp_path / name)
    assert caught.value.hint == "Save it as UTF-8."
    with pytest.raises(TaskError, match=rf"{name}: line \d is not valid UTF-8: "):
        read_split(str(tmp_path), "mine")  # found in its directory, and named


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.jsonl", '{"a": 1}\n{"a": 1, "b": 2, "b": 3}', "line 2 .*'b' is specified twice"),
        ("mine.jsonl", '{"a": 1}\n\n{"a": NaN,}', "line 3 is not valid JSON"),
        ("mine.jsonl", '{"a": 1}{"a": 2}', "line 1 is not valid JSON: Extra data"),
        ("mine.jsonl", '{"a": ' + "[" * 100_000, "line 1 is not valid JSON"),
        ("mine.jsonl", '{"a": ' + "9" * 5000 + "}", "line 1 is not valid JSON"),
        ("mine.jsonl", '{"a": 1}\n{"a" 1}', "line 2 is not valid JSON: .* at column 6"),
        ("mine.jsonl", "\n \n", "has no rows"),
        ("mine.json", '[{"a": 1},\n{"a": 2}\n', "is not valid JSON: .*line 3"),
        ("mine.json", '[{"a": 1}, [2]]', "row 2 is not an object"),
        ("mine.json", '{"data": [{"a": 1}]\n}', "is one JSON object, not a list of rows"),
        ("mine.json", '{"a": 1}\n{"a": }', "line 2 is not valid JSON"),
        ("mine.json", "[]", "has no rows"),
        ("mine.json", "3", "is one JSON value, not a list of rows"),
        ("mine.csv", "a,b,a\n1,2,3\n", "two columns of its first line have the same name"),
        ("mine.csv", "a;b\n1;2\n", "its first line has no comma: 'a;b'"),
        ("mine.csv", "a\tb\n1\t2\n", r"its first line has no comma: 'a\\tb'"),
        ("mine.csv", 'a,b\n1,"2\n3,4\n', "line 3 is not valid CSV: unexpected end of data"),
        ("mine.csv", "a\n" + "x" * 200_000, "line 2 is not valid CSV: field larger than"),
    ],
)
def test_what_cannot_be_parsed_is_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TaskError, match=message) as caught:
        read(tmp_path / name)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.json"])
def test_files_with_byte_order_marks_can_be_joined(tmp_path: Path, name: str) -> None:
    lines = [json.dumps(row).encode() + b"\r\n" for row in ROWS]
    (tmp_path / name).write_bytes(b"".join(codecs.BOM_UTF8 + line for line in lines))
    assert read(tmp_path / name) == ROWS
