"""``export MODEL --visual-tokens``: a whole model with fewer image tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from effllava_optuna import load_pruned
from tests.study_fixtures import invoke

if TYPE_CHECKING:
    from pathlib import Path


def test_a_model_is_exported_with_fewer_image_tokens(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "reduced"
    words = ("export", checkpoint, "--visual-tokens", 0.25, "--out", out)
    done = invoke(*words, "--token-selection", "pooling")
    assert "25% of its image tokens exported" in done.stdout
    reduction = load_pruned(out, device="cpu").visual_tokens
    assert reduction is not None
    assert (reduction.ratio, reduction.selection) == (0.25, "pooling")
    assert "is not empty" in invoke(*words, check=False).stderr
    invoke(*words, "--overwrite")
    inspected = json.loads(invoke("inspect", out, "-f", "json").stdout)
    assert inspected["image_tokens"] == "reduced to 25%, by diversity"


def test_inspect_says_whether_image_tokens_can_be_reduced(checkpoint: Path) -> None:
    assert "16 of the example picture; can be reduced" in invoke("inspect", checkpoint).stdout
    assert "Image tokens" not in invoke("inspect", checkpoint, "--quick").stdout
