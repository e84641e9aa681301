"""The first command of the README."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.study_fixtures import ROOT, FinishedStudy, invoke

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.docs
def test_the_quickstart_study_ends_with_a_verified_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "quickstart.toml"
    shutil.copy(ROOT / "studies" / "quickstart.toml", file)
    output = invoke("run", file).stdout
    document = FinishedStudy(file, output).document()
    assert document["epochs"] == {"planned": 3, "opened": 3}
    assert document["trials"]["complete"] == 240
    assert document["chosen"]["keep_ratio"] <= 0.225
    uniform = document["uniform_by_kind"]
    assert document["chosen"]["accuracy_test"] > uniform["accuracy_test"] + 0.05
    assert "reloaded in a fresh process" in output
    assert (tmp_path / "quickstart.pruned" / "model.safetensors").is_file()
