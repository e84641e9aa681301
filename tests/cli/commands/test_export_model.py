"""``export MODEL``: a whole model, in another form or with fewer image tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from effllava_optuna import export, load, load_pruned, rank_units, sliced
from effllava_optuna.policy import Policy
from tests.study_fixtures import invoke

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.exports


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


def test_an_earlier_export_is_exported_in_another_form(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load(checkpoint, device="cpu")
    first = loaded.structure.components[0]
    widths = {first.id: 1} | {each.id: each.width for each in loaded.structure.components[1:]}
    small = sliced(loaded, Policy.of(loaded.structure, widths), rank_units(loaded))
    export(small, tmp_path / "small.pruned")
    out = tmp_path / "portable"
    done = invoke("export", tmp_path / "small.pruned", "--format", "portable", "--out", out)
    assert f"small.pruned exported to {out}" in done.stdout
    assert "of them padding" in done.stdout
    assert load(out, device="cpu").parts.structure == loaded.structure


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "To export a model, a place for the export is needed"),
        (("--out", "x", "--trial", "3"), "--trial and --sequential are for studies"),
        (("--out", "x", "--sequential"), "--trial and --sequential are for studies"),
        (("--out", "x", "--study-name", "y"), "means a model, but --storage or --study-name"),
    ],
)
def test_options_of_studies_are_refused_for_a_directory(
    words: tuple[str, ...], reason: str, checkpoint: Path, tmp_path: Path
) -> None:
    done = invoke("export", checkpoint, *words, check=False)
    assert done.returncode == 2
    assert reason in done.stderr
