"""The scripts that measure still run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import rows, script

RESULTS = Path(__file__).parents[1] / "benchmarks" / "RESULTS.md"


def test_the_comparison_of_orders_and_refits_runs(capsys: pytest.CaptureFixture[str]) -> None:
    compensation = script("compensation")
    compensation.main(["--tiny"])
    expected, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"About \d+ s\.", expected)
    found = dict(line.split(": ") for line in lines)
    assert [*found] == ["magnitude none 0.5", "taylor least-squares 0.5"]
    assert all(0.3 < float(share) <= 1 for share in found.values())


def test_its_table_pairs_the_draws() -> None:
    compensation = script("compensation")
    rows = [
        {"order": m.order, "refit": m.refit, "tokens": m.tokens, "keep": keep, "draw": draw}
        | {"accuracy": 0.5 + 0.1 * draw + 0.2 * ((m.order, m.refit) == ("obs", "none"))}
        for m in compensation.COMBINATIONS
        for keep in m.keeps
        for draw in (1, 0)
    ]
    rows += [{"order": "dense", "draw": draw, "accuracy": 0.9} for draw in (0, 1)]
    where = {"cpu": "c", "torch": "t", "transformers": "f", "date": "d"}
    text = compensation.report(rows, where)
    assert "Dense: 0.900 (0.000)" in text
    spread = f"({np.std([0.5, 0.6], ddof=1):.3f})"
    line = next(line for line in text.splitlines() if line.startswith("| obs | none | 0.750"))
    assert (
        line
        == f"| obs | none | 0.750 {spread} | 0.750 {spread} | 0.750 {spread} | +0.200 (0.000) |"
    )


def test_the_cost_of_a_trial_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    trial_cost = script("trial_cost")
    threads = torch.get_num_threads()
    try:
        trial_cost.main(["--tiny"])
    finally:
        torch.set_num_threads(threads)
    expected, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"About \d+ s\.", expected)
    found = dict(line.split(": ") for line in lines)
    assert "of it all else, ms" in found
    assert sum(name.startswith("answering at keep") for name in found) == 8
    shares = [int(told.rstrip("%")) for name, told in found.items() if name.startswith("share")]
    assert sum(shares) == pytest.approx(100, abs=len(shares))


def test_its_table_shows_what_was_before() -> None:
    trial_cost = script("trial_cost")
    keeps = [str(keep) for keep in trial_cost.KEEPS]

    def run(factor: float) -> dict[str, Any]:
        model = {
            "plain": [10.0, 20.0],
            "trial": {keep: [10.0 * factor, 20.0 * factor] for keep in keeps},
            "forward": {keep: [5.0, 10.0] for keep in keeps},
            "put_on": [factor, factor],
            "profile": {"GEMM": 0.75, "Python, or idle": 0.25},
            "samples": 64,
            "batches": 2,
        }
        return {
            "model": model,
            "put_on_7b": [factor],
            "study": {"trial": [40.0 * factor], "forward": [40.0]},
        }

    where = {"cpu": "c", "torch": "t", "transformers": "f", "date": "d"}
    found = {"provenance": where, "commit": "abc", "before": [run(3.0)], "now": [run(1.5)]}
    text = trial_cost.section(found)
    assert "| | before (abc) | now |" in text
    assert "| of it all else, ms | 80.0 (80.0-80.0) | 20.0 (20.0-20.0) |" in text
    ratio = (
        "| answering at keep 0.5 / dense forward passes | 3.00 (3.00-3.00) | 1.50 (1.50-1.50) |"
    )
    assert ratio in text
    assert "| share of GEMM | 75% | 75% |" in text


@pytest.mark.usefixtures("unchanged")
def test_the_figures_of_a_gpu_can_be_had_from_a_cpu_in_small(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script("gpu").main(["--shape", "tiny", "--device", "cpu", "--tiny"])
    printed = capsys.readouterr().out
    done = [line.partition(":")[0] for line in printed.splitlines() if ": done after" in line]
    assert done == ["trial_cost-tiny", "latency_model-tiny", "speedup-tiny"]
    keeps, (table,), (faster,) = rows(printed)[:4], rows(printed)[4:5], rows(printed)[5:]
    assert [row[0] for row in keeps] == ["1.0", "0.75", "0.5", "0.35"]
    assert table[0] == "tiny shape, 1 prompts, 16 new tokens"
    assert float(table[2].rstrip("%")) >= 0
    ideal = [float(faster[index]) for index in (4, 8)]
    assert 1.4 < min(ideal) <= max(ideal) < 2  # half the decoder, and what is no part of it


def test_without_a_gpu_its_figures_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="There is no GPU here"):
        script("gpu").main([])


@pytest.mark.usefixtures("unchanged")
def test_a_whole_study_of_a_shape_runs(capsys: pytest.CaptureFixture[str]) -> None:
    script("scale").main(["--shape", "tiny", "--device", "cpu", "--tiny"])
    stages = [row[0] for row in rows(capsys.readouterr().out)]
    assert stages == ["pictures", "calibration", "search and projector", "slice"]


@pytest.mark.usefixtures("unchanged")
def test_an_export_is_raced_in_plain_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    script("speedup").main(["--tiny"])
    printed = capsys.readouterr().out
    assert "exported, read by plain transformers" in printed
    ((keep, share, *figures),) = rows(printed)
    assert (keep, share) == ("0.50", "0.500")
    assert float(figures[2]) == pytest.approx(1.98, abs=0.02)  # of the operations, half remain


@pytest.mark.parametrize(
    ("name", "first"),
    [
        pytest.param("memory", ["none", "least-squares"], marks=pytest.mark.slow),
        pytest.param("storage", ["SQLite"], marks=pytest.mark.slow),
        pytest.param("workers", ["sqlite"], marks=pytest.mark.slow),
        ("peers", ["effllava_optuna", "Torch-Pruning", "dense"]),
        ("latency_model", ["digits-vlm, prefill of 4", "digits-vlm, 2 with 16 new tokens"]),
    ],
)
@pytest.mark.usefixtures("unchanged")
def test_a_small_form_runs(name: str, first: list[str]) -> None:
    words = [sys.executable, "-W", "ignore", str(RESULTS.parent / f"{name}.py"), "--tiny"]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    assert list(dict.fromkeys(row[0] for row in rows(done.stdout))) == first
    if name == "peers":
        assert "was still running after 5 s" in done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("unchanged")
def test_a_small_form_of_a_large_study_is_served() -> None:
    words = [sys.executable, "-W", "ignore", str(RESULTS.parent / "dashboard.py"), "--tiny"]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    assert "study of 16 trials of 4 genes" in done.stdout
    found = dict(rows(done.stdout))
    assert int(found["the note"].split()[0].replace(",", "")) > 500
    assert {f"figure `{name}`" for name in ("front_by_epoch", "hypervolume")} < set(found)
    for name in ("first load of the page's data", "each poll after it, nothing new"):
        assert re.fullmatch(r"[\d.]+ m?s, [\d.]+ MB", found[name])


def test_a_target_that_nobody_has_measured_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = script("targets")
    monkeypatch.setattr(targets, "RESULTS", tmp_path)
    assert [row[-1] for row in rows(targets.section())] == ["not measured"] * 10
    run = {"peak": 11, "dense": 8, "table": 2}
    found = {"runs": {"none": run}, "provenance": {"gpu": "a card"}}
    (tmp_path / "memory-4096.json").write_text(json.dumps(found))
    told = [row[-1] for row in rows(targets.section()) if row[-1] != "not measured"]
    assert told == ["[a card](results/memory-4096.json): 1.10 (none)"]


def test_the_table_of_targets_is_that_of_the_results() -> None:
    section = RESULTS.read_text(encoding="utf-8").split("\n## Targets\n")[1].split("\n## ")[0]
    assert section.strip() == script("targets").section().strip()
