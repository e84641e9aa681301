"""The gate runs every tier of tests, and the documentation names it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOT_IN_THE_GATE = {"exhaustive"}


def tiers() -> tuple[dict[str, Any], set[str]]:
    """Return the options of pytest, and the markers that a run without options leaves out."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    options = document["tool"]["pytest"]["ini_options"]
    (left_out,) = [each for each in options["addopts"] if each.startswith("not (")]
    return options, {*left_out.removeprefix("not (").removesuffix(")").split(" or ")}


def test_the_gate_runs_every_tier_that_a_run_without_options_leaves_out() -> None:
    gate = (ROOT / ".ci/run").read_text(encoding="utf-8")
    (together,) = re.findall(r'^tiers="(.*)"$', gate, re.MULTILINE)
    # Tiers that need an engine have a step each.
    alone = set(re.findall(r'pytest -q -m "?(?!not)(\w+)', gate))
    assert {*together.split(" or "), *alone} == tiers()[1] - NOT_IN_THE_GATE


def test_every_tier_is_a_marker_and_documented() -> None:
    options, left_out = tiers()
    markers = {marker.partition(":")[0] for marker in options["markers"]}
    assert left_out == markers - {"gpu"}  # skipped by itself
    page = (ROOT / "docs/development.md").read_text(encoding="utf-8")
    assert markers == set(re.findall(r"^\| `(\w+)` \| ", page, re.MULTILINE))
