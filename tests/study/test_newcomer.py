"""A newcomer's path, from a model to a smaller one, by nothing but documented commands."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from pathlib import Path

import pytest

from effllava_optuna import load_pruned
from tests.study.conftest import ROOT, cli, command, environment

# What a run of seconds needs to say; all else stays as `init` wrote it.
SHORT = (
    "search.epochs=2", "search.generations=2", "search.population=8", "latency.seconds=0",
    "latency.checks=4", "latency.batch=16", "task.validation=100", "task.test=200",
    "projector.steps=4", "report.finalists=3", "pruning.shares=[0.1, 0.3, 0.5, 1.0]",
)  # fmt: skip


def dashboard(*named: str) -> str:
    """Open the dashboard as a browser would, and close it; give what it said."""
    process = subprocess.Popen(
        command("dashboard", *named, "--port", 0), stdout=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip
    if process.stdout is None:
        raise AssertionError
    try:
        line = process.stdout.readline()
        with urllib.request.urlopen(line.split()[2], timeout=60) as response:
            assert response.status == 200
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
    return line


def test_from_a_model_to_a_smaller_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli("init", "digits-vlm", "--task", "digits", "--out", "mine.toml")
    assert "240 trials" in cli("check", "mine.toml").stdout
    settings = [word for change in SHORT for word in ("--set", change)]
    ran = cli("run", "mine.toml", *settings).stdout
    assert "<- chosen" in ran
    assert "exported to mine.pruned" in ran
    # What was set is not in the file: the study is named by its database from now on.
    named = ("--storage", "sqlite:///mine.db", "--study-name", "mine")
    assert "optuna-dashboard on http://127.0.0.1:" in dashboard(*named)
    assert "page: mine.html" in cli("report", *named).stdout
    picked = cli("pick", *named, "--speedup", "1.1").stdout
    (export,) = re.findall(r"^python -m effllava_optuna.study (export .*)$", picked, re.MULTILINE)
    assert "exported to pruned" in cli(*export.split()).stdout
    small, dense = load_pruned("pruned", device="cpu"), 1_332_800
    assert small.model.num_parameters() < 0.6 * dense


def test_the_commands_of_the_path_are_documented() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    told = " ".join(page.read_text() for page in pages)
    for verb in ("init", "check", "run", "dashboard", "report", "pick", "export"):
        assert f"effllava_optuna.study {verb} " in told
    assert "load_pruned(" in told
