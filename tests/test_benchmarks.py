"""The scripts that measure still run."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import script


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
        for m in compensation.EVERY
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
        return {"model": model, "study": {"trial": [40.0 * factor], "forward": [40.0]}}

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
