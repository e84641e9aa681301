"""The README's first command, after installation."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.study.conftest import ROOT, Ran, cli

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_quickstart_goes_to_a_verified_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "quickstart.toml"
    shutil.copy(ROOT / "studies" / "quickstart.toml", file)
    output = cli("run", file).stdout
    found = Ran(file, output).document()
    assert found["epochs"] == {"planned": 3, "opened": 3}
    assert found["trials"]["complete"] == 240
    assert sum(update["seconds"] for update in found["projector"]) <= 60
    assert found["chosen"]["kept_share"] <= 0.225
    assert found["chosen"]["accuracy_test"] > found["uniform2"]["accuracy_test"]
    assert "reloaded in a fresh process" in output
    assert (tmp_path / "quickstart.pruned" / "model.safetensors").is_file()
