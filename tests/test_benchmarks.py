"""The scripts that measure still run."""

from __future__ import annotations

import re

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
