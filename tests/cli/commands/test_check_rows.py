"""``check`` reads the rows, looks their pictures up, and compares the budget with the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from effllava_optuna.checkpoint_format import EMBEDDED
from effllava_optuna.errors import StudyError
from effllava_optuna.storage.studies import study_names
from tests.study_fixtures import invoke, subprocess_environment, url_of_study, write_tiny
from tests.tasks.row_tasks import rows_with_images, write_rows

STUDY = """
[model]
path = "digits-vlm"
[task]
name = "qa"
data = "mine.jsonl"
"""


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return rows_with_images(tmp_path, 40)


def check(tmp_path: Path, rows: list[dict[str, Any]], study: str = STUDY) -> tuple[int, str]:
    write_rows(tmp_path, rows)
    (tmp_path / "study.toml").write_text(study)
    done = invoke("check", tmp_path / "study.toml", check=False)
    assert done.returncode == 0 or done.stderr.count("\n") == 1
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr


def test_check_counts_rows_pictures_answers_and_samples(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    del rows[3]["image"]
    code, printed = check(tmp_path, rows)
    assert code == 0
    assert "rows: 40, 39 of them with a picture and 40 with an answer; columns: " in printed
    assert "samples: 20 proxy, 10 validation, 10 test\n" in printed
    document = json.loads(invoke("check", tmp_path / "study.toml", "-f", "json").stdout)
    assert document["rows"]["samples"] == {"proxy": 20, "validation": 10, "test": 10}
    assert document["rows"]["columns"] == ["image", "question", "answer"]
    assert [document["task"][name] for name in ("proxy", "validation", "test")] == [20, 10, 10]


def test_check_says_why_rows_are_in_no_split(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    code, printed = check(tmp_path, rows, f"{STUDY}proxy = 8\nvalidation = 8\ntest = 8\n")
    assert code == 0, printed
    assert (
        "samples: 8 proxy, 8 validation, 8 test; 16 of the rows are in no split, because the "
        "splits are full, or another split has their picture or question\n"
    ) in printed


def test_check_names_the_splits_of_the_data_that_samples_come_from(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    parts = {"train": rows[:20], "validation": rows[20:30], "test": rows[30:]}
    (tmp_path / "parts").mkdir()
    for name, part in parts.items():
        lines = [json.dumps(row | {"image": f"../{row['image']}"}) for row in part]
        (tmp_path / "parts" / f"{name}.jsonl").write_text("\n".join(lines))
    study = STUDY.replace('"mine.jsonl"', '"parts"')
    code, printed = check(tmp_path, rows, study)
    assert code == 0, printed
    assert "20 proxy from 'train', 10 validation from 'validation', 10 test from 'test'" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "gone.png"}, "line 8: image 'gone.png' is not a file beside the rows"),
        ({"image": "empty.png"}, "line 8: image 'empty.png' is an empty file"),
        ({"answer": ""}, "line 8: answer is empty. Fix these rows, remove them, or set quality."),
        ({"answer": 5}, 'line 8: answer is 5, which is not a text. Fix these rows, remove them, '
                        'or write numbers as texts ("5").'),
        ({"id": "a"}, "line 8: id 'a' is also that of line 4"),
    ],
)  # fmt: skip
def test_check_names_the_line_of_a_row_that_cannot_be_used(
    change: dict[str, Any], message: str, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    (tmp_path / "empty.png").touch()
    rows[3]["id"] = "a"
    rows[7] |= change
    code, printed = check(tmp_path, rows)
    assert code == 2
    assert f"{tmp_path / 'mine.jsonl'}, {message}" in printed


def test_pictures_are_opened_by_the_deep_check_alone(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    (tmp_path / "7.png").write_bytes(b"no picture")
    assert check(tmp_path, rows)[0] == 0
    done = invoke("check", tmp_path / "study.toml", "--deep", check=False)
    assert done.returncode == 2
    assert f"The image '7.png' of sample 'train-00007' ({tmp_path / 'mine.jsonl'}, line 8) " in (
        done.stderr
    )


def test_check_notes_what_makes_rows_less_useful(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    code, printed = check(tmp_path, [*rows, rows[2], rows[5]])
    file = tmp_path / "mine.jsonl"
    assert code == 0
    assert f"note: {file}, line 41 repeats {file}, line 3, and 1 more do" in printed
    assert "note: 42 of 42 answers are 'yes'" in printed
    assert "note: with fewer than about 200 rows" in printed


def test_rows_are_read_without_torch(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    check(tmp_path, rows)
    code = "import sys; from effllava_optuna.cli.program import main\n"
    code += f"main(['check', {str(tmp_path / 'study.toml')!r}], standalone_mode=False)\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env=subprocess_environment(),
    )  # fmt: skip
    assert (done.returncode, done.stdout.count("rows: 40")) == (0, 1), done.stderr


def test_rows_of_the_hub_are_not_downloaded_by_check(tmp_path: Path) -> None:
    code, printed = check(tmp_path, [], STUDY.replace("mine.jsonl", "someone/dataset"))
    assert (code, "rows:" in printed) == (0, False)


def test_rows_that_cannot_fill_the_folds_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    for number, row in enumerate(rows):
        row["image"] = f"{number % 3}.png"
    code, printed = check(tmp_path, rows)
    assert code == 2
    assert "proxy samples are about 1 picture, but pruning.folds = 2 needs 2" in printed


BUDGET = """
[model]
path = "./model"
[task]
name = "digits"
[search]
keep_ratio = {}
"""


@pytest.mark.parametrize(("keep_ratio", "code"), [(0.05, 2), (0.099, 2), (0.1, 0), (0.3, 0)])
def test_check_refuses_a_keep_ratio_by_the_configuration_of_the_model(
    keep_ratio: float, code: int, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    config = (EMBEDDED / "digits-vlm" / "config.json").read_text()
    (tmp_path / "model" / "config.json").write_text(config)
    (tmp_path / "study.toml").write_text(BUDGET.format(keep_ratio))
    done = invoke("check", tmp_path / "study.toml", check=False)
    assert done.returncode == code
    assert code == 0 or done.stderr == (
        f"search.keep_ratio = {keep_ratio}: the narrowest policy keeps 0.100 of the prunable "
        "weights. Use 0.100 or more, or smaller pruning.width_ratios.\n"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("search.keep_ratio=0.01", "search.keep_ratio = 0.01: the narrowest policy keeps 0."),
        ("search.speedup=1000.0", "Use search.speedup = "),
        ("search.latency_ms=0.0001", "Use search.latency_ms = "),
    ],
)
def test_a_budget_that_cannot_be_met_leaves_no_study(
    change: str, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    file = write_tiny(checkpoint, tmp_path)
    if "keep_ratio" not in change:
        file.write_text(file.read_text().replace("keep_ratio = 0.5\n", ""))
    done = invoke("run", file, "--set", change, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert "ranking and fitting" not in done.stdout
    url = url_of_study(file)
    if "keep_ratio" in change:
        with pytest.raises(StudyError, match="no such database"):
            study_names(url)
    else:
        assert study_names(url) == []
