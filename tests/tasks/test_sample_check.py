"""`check --deep` reports unusable samples before a study begins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile

from effllava_optuna.tasks import DataTask, Split
from tests.study_fixtures import ROWS_STUDY, invoke


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    rows = []
    for number in range(24):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append({"id": str(number), "image": f"{number}.png", "question": "q?"})
    return [row | {"answer": "3"} for row in rows]


def check_deep(
    where: Path, rows: list[dict[str, Any]], config: str = ROWS_STUDY
) -> tuple[int, str]:
    (where / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (where / "study.toml").write_text(config)
    result = invoke("check", where / "study.toml", "--deep", check=False)
    assert result.stderr.count("\n") == (1 if result.returncode else 0)
    return result.returncode, result.stderr


def test_rows_that_can_be_used_pass(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    assert check_deep(tmp_path, rows) == (0, "")


AGREEMENT_STUDY = ROWS_STUDY + '[quality]\nmeasure = "agreement"\n'


def test_rows_without_answers_pass_if_the_study_needs_none(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    unlabelled = [{"image": row["image"], "question": row["question"]} for row in rows]
    assert check_deep(tmp_path, unlabelled, AGREEMENT_STUDY) == (0, "")
    code, message = check_deep(tmp_path, unlabelled)
    assert (code, 'or quality.measure = "agreement"' in message) == (2, True)


def test_pictures_and_options_of_rows_without_answers_are_checked_too(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    for row in rows:
        del row["answer"]
    (tmp_path / rows[3]["image"]).write_bytes(b"no image")
    code, message = check_deep(tmp_path, rows, AGREEMENT_STUDY)
    assert (code, "line 4) cannot be opened" in message) == (2, True)


def test_an_image_of_an_unused_row_is_opened_too(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    for number, row in enumerate(rows):
        (tmp_path / row["image"]).write_bytes(b"no image %d" % number)
    code, message = check_deep(tmp_path, rows)
    assert code == 2
    assert message.count("cannot be opened") == 3
    assert f"{len(rows) - 3} more cannot be used. Replace the file" in message


def test_an_image_token_in_a_question_is_reported(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    code, message = check_deep(tmp_path, [row | {"question": "see <image>"} for row in rows])
    assert (code, "has '<image>' in its question" in message) == (2, True)
    assert "13 more cannot be used" in message


def test_options_with_the_same_first_token_are_reported(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    code, message = check_deep(tmp_path, [row | {"choices": ["3", "4", "5"]} for row in rows])
    assert (code, "two of its answers begin with the same token" in message) == (2, True)


def test_answers_that_are_longer_than_what_is_generated_are_reported(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    config = f'{ROWS_STUDY}harness = "exact-match"\nnew_tokens = '
    rows = [row | {"answer": "the sum of the digits"} for row in rows]
    code, message = check_deep(tmp_path, rows, f"{config}3")
    assert (code, "has no correct answer of 3 tokens, which are generated" in message) == (2, True)
    assert "13 more cannot be used. Raise task.new_tokens" in message
    assert check_deep(tmp_path, rows, f"{config}5") == (0, "")
    assert check_deep(tmp_path, rows, f"{ROWS_STUDY}new_tokens = 3") == (0, "")  # a part has an F1


LONG = "what is it? " * 60


@pytest.mark.parametrize(
    ("change", "number", "message"),
    [
        ({"question": LONG}, 3, r"Sample '3' \(.*, line 4\) has a prompt of"),
        ({"question": LONG, "image": None}, 23, r"Sample '23' \(.*, line 24\) has a prompt of"),
        ({"question": LONG, "image": "0.png"}, 7, r"Sample '7' \(.*, line 8\) has a prompt of"),
    ],
)
def test_a_prompt_that_is_longer_than_the_context_is_reported(
    change: dict[str, Any], number: int, message: str, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    rows[number] |= change
    code, printed = check_deep(tmp_path, rows)
    assert (code, bool(re.search(message, printed))) == (2, True), printed
    assert "but the model has a context of 128" in printed
    assert "task.new_tokens" in printed


def test_the_answer_that_is_read_counts_to_the_prompt(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    code, printed = check_deep(tmp_path, [row | {"answer": "3 " * 120} for row in rows])
    assert (code, printed.count("has a prompt of")) == (2, 3)


def test_a_system_turn_counts_to_the_prompt(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for key in ("system", "instruction"):
        (tmp_path / "study.toml").write_text(f'{ROWS_STUDY}{key} = "{LONG}"\n')
        done = invoke("check", tmp_path / "study.toml", "--deep", check=False)
        assert done.returncode == 2
        assert done.stderr.count("has a prompt of") == 3
        assert "21 more cannot be used" in done.stderr


def test_answers_that_may_leave_the_context_are_reported(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "study.toml").write_text(f"{ROWS_STUDY}new_tokens = 120\n")
    done = invoke("check", tmp_path / "study.toml", "--deep", check=False)
    assert done.returncode == 2
    assert "tokens and may generate 120, but the model has a context of 128" in done.stderr


@pytest.mark.parametrize("split", [Split.VALIDATION, Split.TEST])
@pytest.mark.parametrize("fault", ["picture", "question"])
def test_run_refuses_a_sample_that_it_would_need_after_the_search(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    split: Split,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # lmms-eval changes it when another test imports it.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "study.toml").write_text(ROWS_STUDY)
    task = DataTask("qa", str(tmp_path / "mine.jsonl"), proxy=8, validation=4, test=4)
    row = rows[int(task.samples(split)[-1].id)]
    if fault == "picture":
        file = tmp_path / row["image"]
        file.write_bytes(file.read_bytes()[:60])
        reason = "cannot be opened: image file is truncated."
    else:
        row["question"] = "q<image>?"
        (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        reason = "has '<image>' in its question."
    before = sorted(tmp_path.iterdir())
    result = invoke("run", tmp_path / "study.toml", check=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"ample '{row['id']}' (" in result.stderr
    assert f"mine.jsonl, line {int(row['id']) + 1}) {reason}" in result.stderr
    assert sorted(tmp_path.iterdir()) == before
