"""The scripts that measure still run."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

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


def test_the_measurement_of_rungs_runs(capsys: pytest.CaptureFixture[str]) -> None:
    script("rungs").main(["--tiny"])
    told = capsys.readouterr().out
    found = re.search(r"\| 0 \| \[16, 32, 48\] \| (\d+) of 16 \(", told)
    assert found is not None
    assert int(found[1]) > 0
    assert "Of the stopped, 0 were as good as their rival" in told


def test_its_summary_pairs_runs_by_seed() -> None:
    rungs = script("rungs")

    def row(seed: int, told: list[int], samples: int, test: float) -> dict[str, Any]:
        return {
            "seed": seed, "rungs": told, "trials": 10, "stopped": len(told), "samples": samples,
            "seconds": 2.0 + len(told), "wrong": 0, "missed": 1, "ms_at_once": 10.0,
            "ms_in_rungs": 15.0, "after": {"8": len(told)}, "chosen": {"accuracy_test": test},
        }  # fmt: skip

    rows = [row(1, [8], 90, 0.8), row(0, [], 100, 0.6), row(1, [], 100, 0.7), row(0, [8], 70, 0.7)]
    pairs = rungs.paired(rows)
    assert [(off["seed"], on["seed"]) for off, on in pairs] == [(0, 0), (1, 1)]
    told = rungs.summary(pairs)
    assert "Rungs [8]: 2 of 20 policies were stopped, which spared 20.0% of all answers" in told
    assert "CPU seconds: +50.0%" in told
    assert "takes 1.50 times as long in rungs" in told
    assert "rungs minus without: +0.100 (standard deviation 0.000)" in told
