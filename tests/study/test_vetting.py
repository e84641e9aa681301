"""`check --deep` finds before a study what would stop it in the middle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.study.conftest import cli

SPEC = """
[model]
path = "digits-vlm"
[task]
name = "qa"
data = "mine.jsonl"
proxy = 8
validation = 4
test = 4
"""


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    found = []
    for number in range(24):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
        found.append({"id": str(number), "image": f"{number}.png", "question": "q?"})
    return [row | {"answer": "3"} for row in found]


def deep(where: Path, rows: list[dict[str, Any]]) -> tuple[int, str]:
    (where / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (where / "own.toml").write_text(SPEC)
    done = cli("check", where / "own.toml", "--deep", check=False)
    assert done.stderr.count("\n") == (1 if done.returncode else 0)
    return done.returncode, done.stderr


def test_rows_that_can_be_used_pass(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    assert deep(tmp_path, rows) == (0, "")


def test_a_picture_outside_the_splits_is_opened_too(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    for number, row in enumerate(rows):
        (tmp_path / row["image"]).write_bytes(b"no picture %d" % number)
    code, told = deep(tmp_path, rows)
    assert code == 2
    assert told.count("cannot be opened") == 3
    assert f"{len(rows) - 3} more cannot be used. Replace the file" in told


def test_an_image_token_in_a_question_is_found(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    code, told = deep(tmp_path, [row | {"question": "see <image>"} for row in rows])
    assert (code, "has '<image>' in its question" in told) == (2, True)
    assert "13 more cannot be used" in told


def test_options_that_a_model_cannot_tell_apart_are_found(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    code, told = deep(tmp_path, [row | {"choices": ["3", "4", "5"]} for row in rows])
    assert (code, "two of its answers begin with the same token" in told) == (2, True)
