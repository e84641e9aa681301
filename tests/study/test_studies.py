"""The study files that come with the project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from effllava_optuna.study import read_spec
from tests.conftest import script
from tests.study.conftest import cli

STUDIES = Path(__file__).parents[2] / "studies"
EVERY = sorted(STUDIES.glob("*.toml"))
HUB = [file for file in EVERY if "/" in read_spec(file).model.path]


@pytest.mark.parametrize("file", EVERY, ids=lambda file: file.stem)
def test_every_study_file_passes_the_check(file: Path) -> None:
    assert cli("check", file).stdout.startswith(f"{file}: study {file.stem!r}")


@pytest.mark.parametrize("file", HUB, ids=lambda file: file.stem)
def test_a_large_study_says_what_it_needs_as_the_cost_model_has_it(
    file: Path,
) -> None:
    estimate = script("estimate")
    header = " ".join(line.lstrip("# ") for line in file.read_text().split("\n\n")[0].split("\n"))
    spec = read_spec(file)
    assert estimate.told(spec) in header
    assert "neither has been measured by us" in header
    assert re.search(r"[Tt]he paper", header)
    needed = estimate.estimate(spec, estimate.SHAPES[spec.model.path]).table_gb
    assert needed < spec.pruning.table_gb
    assert spec.export.directory == f"{file.stem}.pruned"


def test_the_paper_s_four_benchmarks_are_there_for_both_sizes() -> None:
    found = {file.stem for file in HUB}
    assert found == {
        *(
            f"llava-1.5-{size}-{task}"
            for size in ("7b", "13b")
            for task in ("scienceqa", "vizwiz", "mmvet", "llava-bench")
        ),
        "qwen2.5-vl-7b-scienceqa",
        "smolvlm-scienceqa",
    }
