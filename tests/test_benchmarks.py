"""The scripts that measure run in their small forms, and their tables show the right figures."""

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

from tests.conftest import page_of, rows, script

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ORIGIN = {"cpu": "c", "torch": "t", "transformers": "f", "date": "d"}


def test_the_comparison_of_compensations_runs(capsys: pytest.CaptureFixture[str]) -> None:
    script("compensation").main(["--tiny"])
    duration, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"About \d+ s\.", duration)
    accuracies = dict(line.split(": ") for line in lines)
    assert [*accuracies] == ["magnitude none 0.5", "taylor least-squares 0.5"]
    assert all(0.3 < float(accuracy) <= 1 for accuracy in accuracies.values())


def test_the_table_of_compensations_pairs_the_draws() -> None:
    compensation = script("compensation")

    def accuracy(combination: Any, draw: int) -> float:
        is_obs = (combination.importance, combination.compensation) == ("obs", "none")
        return 0.5 + 0.1 * draw + 0.2 * is_obs

    records = [
        {
            "importance": combination.importance,
            "compensation": combination.compensation,
            "tokens": combination.tokens,
            "width_ratio": ratio,
            "draw": draw,
            "accuracy": accuracy(combination, draw),
        }
        for combination in compensation.COMBINATIONS
        for ratio in combination.width_ratios
        for draw in (1, 0)
    ]
    records += [{"importance": "dense", "draw": draw, "accuracy": 0.9} for draw in (0, 1)]
    text = compensation.section(records, ORIGIN)
    assert "Dense: 0.900 (0.000)" in text
    spread = f"({np.std([0.5, 0.6], ddof=1):.3f})"
    line = next(line for line in text.splitlines() if line.startswith("| obs | none | 0.750"))
    cells = [f"0.750 {spread}"] * 3 + ["+0.200 (0.000)"]
    assert line == f"| obs | none | {' | '.join(cells)} |"


@pytest.mark.benchmarks
def test_the_cost_of_a_trial_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        script("trial_cost").main(["--tiny"])
    finally:
        torch.set_num_threads(threads)
    duration, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"About \d+ s\.", duration)
    figures = dict(line.split(": ") for line in lines)
    assert "all else in it, ms" in figures
    assert sum(name.startswith("scoring at width ratio") for name in figures) == 8
    shares = [
        int(figure.rstrip("%")) for name, figure in figures.items() if name.startswith("share of")
    ]
    assert sum(shares) == pytest.approx(100, abs=len(shares))


def test_the_table_of_the_cost_of_a_trial_shows_another_commit() -> None:
    trial_cost = script("trial_cost")
    ratios = [str(ratio) for ratio in trial_cost.WIDTH_RATIOS]

    def run(factor: float) -> dict[str, Any]:
        model = {
            "plain": [10.0, 20.0],
            "trial": {ratio: [10.0 * factor, 20.0 * factor] for ratio in ratios},
            "forward": {ratio: [5.0, 10.0] for ratio in ratios},
            "apply_ms": [factor, factor],
            "profile": {"GEMM": 0.75, "Python, or idle": 0.25},
            "samples": 64,
            "batches": 2,
        }
        study = {"trial": [40.0 * factor], "forward": [40.0]}
        return {"model": model, "apply_7b_ms": [factor], "study": study}

    figures = {"provenance": ORIGIN, "commit": "abc", "before": [run(3.0)], "now": [run(1.5)]}
    lines = trial_cost.section(figures).splitlines()
    assert "| quantity | before (abc) | now |" in lines
    assert "| all else in it, ms | 80.0 (80.0-80.0) | 20.0 (20.0-20.0) |" in lines
    ratio = "3.00 (3.00-3.00) | 1.50 (1.50-1.50)"
    assert f"| scoring at width ratio 0.5 / dense forward passes | {ratio} |" in lines
    assert "| share of GEMM | 75% | 75% |" in lines


@pytest.mark.benchmarks
@pytest.mark.usefixtures("unchanged")
def test_the_figures_of_a_gpu_are_measured_on_a_cpu_in_small(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script("gpu").main(["--shape", "tiny", "--device", "cpu", "--tiny"])
    printed = capsys.readouterr().out
    done = [line.partition(":")[0] for line in printed.splitlines() if ": done after" in line]
    assert done == ["trial_cost-tiny", "latency_model-tiny", "speedup-tiny"]
    costs, (table,), (speedup,) = rows(printed)[:4], rows(printed)[4:5], rows(printed)[5:]
    assert [row[0] for row in costs] == ["1.0", "0.75", "0.5", "0.35"]
    assert table[0] == "tiny shape, 1 prompts, 16 new tokens"
    assert float(table[2].rstrip("%")) >= 0
    ideal = [float(speedup[index]) for index in (4, 8)]
    assert 1.4 < min(ideal) <= max(ideal) < 2  # half the decoder, and what does not belong to it


def test_a_missing_gpu_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^No GPU is available\. .*--tiny$"):
        script("gpu").main([])


@pytest.mark.benchmarks
@pytest.mark.usefixtures("unchanged")
def test_a_whole_study_of_a_shape_runs(capsys: pytest.CaptureFixture[str]) -> None:
    script("scale").main(["--shape", "tiny", "--device", "cpu", "--tiny"])
    stages = [row[0] for row in rows(capsys.readouterr().out)]
    assert stages == ["pictures", "calibration", "search and projector", "slice"]


@pytest.mark.benchmarks
@pytest.mark.usefixtures("unchanged")
def test_an_export_is_timed_in_plain_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    script("speedup").main(["--tiny"])
    printed = capsys.readouterr().out
    assert "exported, read by plain transformers" in printed
    ((width_ratio, keep_ratio, *figures),) = rows(printed)
    assert (width_ratio, keep_ratio) == ("0.50", "0.500")
    assert float(figures[2]) == pytest.approx(1.98, abs=0.02)  # of the operations, half remain


TOKEN_SHARES = ("1.00", "0.50", "0.33", "0.22", "0.11")


def run_tiny(name: str) -> str:
    """Run the tiny form of a script in a process of its own, and return its output."""
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / f"{name}.py"), "--tiny"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("memory", ["none", "least-squares"]),
        ("importance_time", ["tiny attention", "tiny MLP"]),
        ("storage", ["SQLite"]),
        ("workers", ["sqlite"]),
        ("visual_tokens", ["all tokens", "diversity", "pooling", "random", *TOKEN_SHARES]),
        ("token_budgets", ["both", "widths alone", "image tokens alone"]),
        ("peers", ["effllava_optuna", "Torch-Pruning", "dense"]),
        ("latency_model", ["digits-vlm, prefill of 4", "digits-vlm, 2 with 16 new tokens"]),
    ],
)
@pytest.mark.benchmarks
@pytest.mark.usefixtures("unchanged")
def test_a_tiny_form_prints_its_table(name: str, first: list[str]) -> None:
    printed = run_tiny(name)
    assert list(dict.fromkeys(row[0] for row in rows(printed))) == first
    if name == "peers":
        assert re.search(r"was (still running|exit code -?\d+) after\s+\d+ s", printed)


@pytest.mark.benchmarks
@pytest.mark.usefixtures("unchanged")
def test_a_tiny_form_of_a_large_study_is_served() -> None:
    printed = run_tiny("dashboard")
    assert "study of 16 trials of 4 genes" in printed
    figures = dict(rows(printed))
    assert int(figures["the note"].split()[0].replace(",", "")) > 500
    assert {f"figure `{name}`" for name in ("front_by_epoch", "hypervolume")} < set(figures)
    for name in ("first load of the page's data", "each poll after it, without news"):
        assert re.fullmatch(r"[\d.]+ m?s, [\d.]+ MB", figures[name])


def test_a_target_without_results_is_reported_as_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = script("targets")
    monkeypatch.setattr(targets, "RESULTS", tmp_path)
    assert [row[-1] for row in rows(targets.section())] == ["not measured"] * 10
    run = {"peak": 11, "dense": 8, "table": 2}
    figures = {"runs": {"none": run}, "provenance": {"gpu": "a card"}}
    (tmp_path / "memory-4096.json").write_text(json.dumps(figures))
    measured = [row[-1] for row in rows(targets.section()) if row[-1] != "not measured"]
    assert measured == ["[a card](../results/memory-4096.json): 1.10 (none)"]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("storage", "Cost of a trial"),
        ("recovery", "Recovery after pruning"),
        ("latency_model", "Error of the latency table"),
        ("memory", "Memory of a search"),
        ("importance_time", "Time of the importance obs"),
        ("peers", "Side by side with Torch-Pruning"),
        ("speedup", "Speed-ups"),
        ("trial_cost", "Forward passes of a trial, and all else"),
        ("workers", "Throughput of workers"),
        ("dashboard", "The dashboard with a large study"),
        ("targets", "Targets"),
    ],
)
def test_a_published_page_is_that_of_its_figures(name: str, title: str) -> None:
    module, file = script(name), BENCHMARKS / "results" / f"{name}.json"
    figures = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    arguments: dict[str, tuple[Any, ...]] = {
        "storage": (figures.get("rows"), figures.get("provenance")),
        "recovery": (figures, 2000),
        "dashboard": (figures, figures.get("provenance")),
        "targets": (),
    }
    section = module.section(*arguments.get(name, (figures,)))
    assert section.strip() == page_of(title)
