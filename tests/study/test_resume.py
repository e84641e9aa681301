"""Promise 5: killed anywhere and resumed, a study measures what an undisturbed one measures."""

from __future__ import annotations

import signal
from pathlib import Path

from effllava_optuna.study import storage
from effllava_optuna.study.loop import conclude, continued, search
from tests.study.conftest import Ran, clone, started
from tests.study.test_cli import wait_for_trials


def test_three_kills_change_nothing(calibrated: Path, smoke: Ran, tmp_path: Path) -> None:
    killed = clone(calibrated, tmp_path / "killed")
    database = killed.with_suffix(".db")
    # The second kill falls into the training of the projector, or close to it.
    for done in (7, 24, 41):
        process = started("resume", killed)
        wait_for_trials(database, done)
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    url = f"sqlite:///{database}"
    study = storage.open_study(storage.open_storage(url), "smoke")
    with continued(study, url) as epochs:
        search(epochs)
        conclude(epochs)
    expected, found = smoke.document("status"), Ran(killed, "").document("status")
    assert expected["trials"]["complete"] == 48
    assert found["trials"]["complete"] == 48
    assert found["digest"] == expected["digest"]
    assert found["hypervolume"] == expected["hypervolume"]
    for row in ("chosen", "dense", "uniform2"):
        for key in ("policy", "accuracy_validation", "accuracy_test", "latency_ms"):
            assert found[row][key] == expected[row][key]
