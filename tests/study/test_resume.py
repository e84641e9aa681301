"""Promise 5: killed anywhere and resumed, a study measures what an undisturbed one measures."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from pathlib import Path

from effllava_optuna.study.loop import begun
from effllava_optuna.study.spec import read_spec
from tests.study.conftest import Ran, cli, command, environment
from tests.study.test_cli import wait_for_trials


def clone(file: Path, where: Path) -> Path:
    """Copy a study: its file, database and artifacts."""
    where.mkdir()
    with sqlite3.connect(file.with_suffix(".db")) as source:
        target = sqlite3.connect(where / file.with_suffix(".db").name)
        source.backup(target)
        target.close()
    shutil.copytree(file.with_suffix(".artifacts"), where / file.with_suffix(".artifacts").name)
    return Path(shutil.copy(file, where / file.name))


def test_three_kills_change_nothing(smoke_file: Path, tmp_path: Path) -> None:
    with begun(read_spec(smoke_file), f"sqlite:///{smoke_file.with_suffix('.db')}"):
        pass
    quiet, killed = clone(smoke_file, tmp_path / "quiet"), clone(smoke_file, tmp_path / "killed")
    cli("resume", quiet)
    # The second kill falls into the training of the projector, or close to it.
    for done in (7, 24, 41):
        process = subprocess.Popen(
            command("resume", killed), stdout=subprocess.DEVNULL, env=environment()
        )
        wait_for_trials(killed.with_suffix(".db"), done)
        process.kill()
        process.wait(60)
    cli("resume", killed)
    expected, found = Ran(quiet, "").document("status"), Ran(killed, "").document("status")
    assert expected["trials"]["complete"] == 48
    assert found["trials"]["complete"] == 48
    assert found["digest"] == expected["digest"]
    assert found["hypervolume"] == expected["hypervolume"]
    for row in ("chosen", "dense", "uniform2"):
        for key in ("policy", "accuracy_validation", "accuracy_test", "latency_ms"):
            assert found[row][key] == expected[row][key]
