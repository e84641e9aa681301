"""The study files of the repository."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from effllava_optuna.config.cost_estimate import describe_cost, estimate_cost
from effllava_optuna.study import load_config
from tests.conftest import script
from tests.study_fixtures import invoke

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))
BUILT = Path(__file__).parents[2] / "benchmarks" / "smollm" / "built"  # by its build.py
BUILT_STUDIES = [f for f in STUDIES if load_config(f).model.path.startswith(str(BUILT))]
READY_STUDIES = [file for file in STUDIES if file not in BUILT_STUDIES]
HUB_STUDIES = [file for file in READY_STUDIES if "/" in load_config(file).model.path]


def test_studies_of_models_that_are_built_name_the_script() -> None:
    assert {file.stem for file in BUILT_STUDIES} == {"smollm-easyvqa", "smollm-text"}
    for file in BUILT_STUDIES:
        header = file.read_text().split("[model]")[0]
        assert "benchmarks/smollm/build.py" in " ".join(header.replace("#", "").split())
        data = load_config(file).task.data
        assert data is not None
        assert Path(data).parent == BUILT


@pytest.mark.parametrize("file", READY_STUDIES, ids=lambda file: file.stem)
def test_every_study_file_passes_the_check(file: Path, drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "drawn").symlink_to(drawn)  # where the script of their headers draws the rows
    copy = Path(shutil.copy(file, tmp_path))
    printed = invoke("check", copy).stdout
    assert printed.startswith(f"{copy}: study {file.stem!r}")
    assert ("\nrows: " in printed) is file.stem.startswith("drawn-")


@pytest.mark.parametrize("file", HUB_STUDIES, ids=lambda file: file.stem)
def test_the_header_of_a_large_study_has_the_cost_estimate(file: Path) -> None:
    header = " ".join(line.lstrip("# ") for line in file.read_text().split("\n\n")[0].split("\n"))
    config = load_config(file)
    cost = estimate_cost(config, script("estimate").SHAPES[config.model.path])
    assert describe_cost(cost) in header
    assert "neither has been measured by us" in header
    assert re.search(r"[Tt]he paper", header)
    assert cost.table_gb < config.pruning.table_gb
    assert config.export.directory == str(file.with_suffix(".pruned"))


def test_the_benchmarks_of_the_paper_have_studies_for_both_sizes() -> None:
    assert {file.stem for file in HUB_STUDIES} == {
        *(
            f"llava-1.5-{size}-{task}"
            for size in ("7b", "13b")
            for task in ("scienceqa", "vizwiz", "mmvet", "llava-bench")
        ),
        "qwen2.5-vl-7b-scienceqa",
        "smolvlm-scienceqa",
    }
