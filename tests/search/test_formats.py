"""A study in each benchmark's format, from drawn rows to the evaluation of its export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from effllava_optuna.study import load_config
from tests.study_fixtures import ROOT, invoke

FORMATS = ("scienceqa", "vizwiz", "mmvet", "llava-bench")


def found(*words: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(invoke(*words, "-f", "json").stdout)
    return document


@pytest.mark.benchmarks
@pytest.mark.parametrize("name", FORMATS)
def test_a_study_runs_from_rows_to_the_evaluation_of_its_export(
    drawn: Path, tmp_path: Path, name: str
) -> None:
    file = Path(shutil.copy(ROOT / "studies" / f"drawn-{name}.toml", tmp_path))
    (tmp_path / "drawn").symlink_to(drawn)
    config = load_config(file)
    assert "checking the samples" in invoke("check", file, "--deep").stdout
    printed = " ".join(invoke("run", file).stdout.split())
    report = found("report", file)
    trials = report["trials"]
    assert trials["complete"] == trials["planned"] == config.search.trials
    # The projector was trained, and what that gave was measured on what it did not see.
    (update,) = report["projector"]
    assert 0 <= update["steps"] <= config.projector.steps
    # The dense model knows the format, and the choice is reported for each subset.
    dense, chosen = report["dense"], report["chosen"]
    assert dense["accuracy_test"] > 0.5
    assert 0 < chosen["accuracy_test"] <= dense["accuracy_test"] + 0.1
    assert set(chosen["subsets_test"]) == set(dense["subsets_test"]) != set()
    assert "Test, by subset" in printed
    assert report["metric"]["report"] in printed
    export = tmp_path / str(config.export.directory)
    letters = ("--letters",) if name == "scienceqa" else ()
    same = found("evaluate", file, "--model", export, *letters)
    assert same["all"]["accuracy"] == pytest.approx(chosen["accuracy_test"], abs=0.011)
    assert same["subsets"].keys() == chosen["subsets_test"].keys()
    trial = found("evaluate", file, "--model", chosen["trial"], *letters)
    assert trial["all"] == {
        "samples": same["all"]["samples"],
        "accuracy": chosen["accuracy_test"],
        "interval": chosen["accuracy_test_interval"],
    }
    whole = found("evaluate", file, "--model", export, "--split", "full")
    assert whole["all"]["samples"] >= same["all"]["samples"]
    if name == "scienceqa":
        assert report["metric"] == {"search": "likeliest option", "report": "likeliest option"}
        assert whole["rule"] == "ScienceQA accuracy (llava parsing)"
        assert set(whole["subsets"]) >= {"NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12"}
        assert whole["seen"] == 0
    if name == "vizwiz":
        assert report["constant"]["text"] == "unanswerable"
        assert "The constant answer 'unanswerable' scores" in printed
    if name in ("mmvet", "llava-bench"):
        assert "a proxy for" in report["metric"]["report"]
        assert report["metric"]["search"] != report["metric"]["report"]
        assert whole["seen"] > 0


def test_a_study_whose_rows_were_not_drawn_says_so(tmp_path: Path) -> None:
    file = Path(shutil.copy(ROOT / "studies" / "drawn-scienceqa.toml", tmp_path))
    file.write_text(file.read_text().replace("drawn-vlm", "digits-vlm"))
    failed = invoke("run", file, check=False)
    assert failed.returncode == 2
    rows = tmp_path / "drawn" / "scienceqa"
    assert f"task.data = {str(rows)!r}: there is no such file or directory" in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
