from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState

from effllava_optuna import load_pruned
from effllava_optuna.surgery import verify_onnx
from tests.study.conftest import (
    ROOT,
    TINY_TRIALS,
    Ran,
    cli,
    clone,
    command,
    environment,
    started,
    write_tiny,
)

VERBS = (
    "check",
    "run",
    "resume",
    "status",
    "report",
    "pick",
    "export",
    "recover",
    "evaluate",
    "dashboard",
)
FRONT = {
    "trial", "epoch", "policy", "quality", "accuracy_proxy", "accuracy_validation",
    "accuracy_test", "risk", "latency_ms", "latency_ms_measured", "speedup_predicted",
    "speedup_measured", "kept_share",
}  # fmt: skip


def test_check_and_report_do_not_import_torch(smoke: Ran) -> None:
    run = f"""
import sys
from effllava_optuna.study.cli import main
for verb in ("check", "status", "report"):
    main([verb, {str(smoke.file)!r}], standalone_mode=False)
    assert "torch" not in sys.modules, f"{{verb}} imported torch"
"""
    done = subprocess.run(
        [*command()[:1], "-c", run],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_bad_study_file_gives_one_line_and_creates_nothing(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('[model]\npath = "no/such/model"\n[task]\nname = "digits"\n')
    for verb in ("run", "status", "resume", "report", "export", "dashboard"):
        done = cli(verb, file, check=False)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
    assert [found.name for found in tmp_path.iterdir()] == ["bad.toml"]
    file.write_text("[search]\nepochs = -1\n")
    done = cli("run", file, check=False)
    assert done.returncode == 2
    assert [found.name for found in tmp_path.iterdir()] == ["bad.toml"]


def test_a_study_goes_on_from_its_calibration_to_a_verified_export(smoke: Ran) -> None:
    assert "dense model:" in smoke.output
    assert "<- chosen" in smoke.output
    assert "reloaded in a fresh process" in smoke.output
    chosen = smoke.document()["chosen"]
    pruned = load_pruned(smoke.file.parent / "smoke.pruned", device="cpu")
    widths = {site.id: site.width for site in pruned.anatomy.sites}
    assert widths == chosen["policy"]
    assert pruned.model.num_parameters() == chosen["parameters"]


def test_report_and_status_give_the_same_complete_document(smoke: Ran) -> None:
    found = smoke.document("report")
    assert found == smoke.document("status")
    assert found["epochs"] == {"planned": 2, "opened": 2}
    assert found["trials"]["complete"] == found["trials"]["planned"] == 48
    assert len(found["hypervolume"]) == 2
    assert 1 <= len(found["front"]) <= 3
    rows = [*found["front"], found["chosen"], found["dense"], found["uniform"], found["uniform2"]]
    for row in rows:
        assert set(row) >= FRONT
        assert row["latency_ms_measured"] > 0
        assert 0 < row["kept_share"] <= 1
        low, high = row["accuracy_test_interval"]
        assert low <= row["accuracy_test"] <= high
    assert found["chosen"] in found["front"]
    for row in (found["chosen"], found["uniform2"]):
        assert row["kept_share"] <= 0.225
    assert found["dense"]["accuracy_test"] > 0.9


def test_the_choice_is_the_best_on_validation(smoke: Ran) -> None:
    found = smoke.document()
    best = max(row["accuracy_validation"] for row in found["front"])
    assert found["chosen"]["accuracy_validation"] == best


def test_trials_carry_what_the_dashboard_sorts_by(smoke: Ran) -> None:
    study = optuna.load_study(
        study_name="smoke",
        storage=f"sqlite:///{smoke.file.with_suffix('.db')}",
        sampler=optuna.samplers.RandomSampler(),
    )
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    for trial in trials:
        for name in ("epoch", "accuracy", "expected", "risk", "kept_share", "log_probability"):
            assert isinstance(trial.user_attrs[name], (int, float))
        assert len(trial.user_attrs["hits"]) == 64
        assert trial.values[0] == pytest.approx(
            trial.user_attrs["expected"] - 0.02 * trial.user_attrs["risk"], abs=1e-5
        )
    again = [trial for trial in trials if trial.user_attrs["kind"] == "reeval"]
    assert again
    for trial in again:
        origin = study.trials[trial.user_attrs["origin"]]
        assert (trial.user_attrs["epoch"], origin.user_attrs["epoch"]) == (1, 0)
        assert trial.params == origin.params
        assert trial.user_attrs["basis"] != origin.user_attrs["basis"]


def test_run_on_a_study_that_exists_points_to_resume(smoke: Ran) -> None:
    done = cli("run", smoke.file, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "Study 'smoke' exists already. Continue it with `resume`, or choose another study.name."
    )


def test_a_changed_file_does_not_continue_another_study(smoke: Ran, tmp_path: Path) -> None:
    # Not by shutil: SQLite's locks are the process's, and go when it closes the file elsewhere.
    file = clone(smoke.file, tmp_path / "changed")
    file.write_text(file.read_text().replace("epochs = 2", "epochs = 3"))
    done = cli("resume", file, check=False)
    assert done.returncode == 2
    assert "search.epochs is 3 in the file and 2 in the study" in done.stderr


def test_a_study_can_be_named_by_its_database(smoke: Ran) -> None:
    url = f"sqlite:///{smoke.file.with_suffix('.db')}"
    named = cli("status", "--storage", url, "--study-name", "smoke").stdout
    assert named == cli("status", smoke.file).stdout
    done = cli("status", "--storage", url, check=False)
    assert done.returncode == 2
    assert "Give a study file, or --storage URL --study-name NAME" in done.stderr


@pytest.mark.slow
def test_an_export_may_be_fitted_in_sequence_and_is_measured_again(
    smoke: Ran, tmp_path: Path
) -> None:
    file, out = clone(smoke.file, tmp_path / "clone"), tmp_path / "sequential"
    printed = cli("export", file, "--sequential", "--out", out).stdout
    line = " ".join(printed.split())
    found = re.search(
        r"fitted in sequence: accuracy (\S+) -> (\S+) on the proxy that it was fitted to, "
        r"(\S+) -> (\S+) on validation",
        line,
    )
    assert found is not None
    assert all(0 < float(share) <= 1 for share in found.groups())
    chosen = smoke.document()["chosen"]
    assert float(found[3]) == pytest.approx(chosen["accuracy_validation"], abs=1e-3)
    before = load_pruned(smoke.file.parent / "smoke.pruned", device="cpu")
    after = load_pruned(out, device="cpu")
    assert after.anatomy == before.anatomy
    changed = {
        name.rsplit(".", 2)[1]
        for name, weight in after.model.state_dict().items()
        if not torch.equal(weight, before.model.state_dict()[name])
    }
    assert changed == {"o_proj", "down_proj"}


def test_export_refuses_a_trial_that_is_not_there(smoke: Ran, tmp_path: Path) -> None:
    done = cli("export", smoke.file, "--trial", 9999, "--out", tmp_path / "x", check=False)
    assert done.returncode == 2
    assert "Trial 9999 of 'smoke' was not measured" in done.stderr
    assert not (tmp_path / "x").exists()


def test_an_onnx_file_is_not_written_over(smoke: Ran, tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_text("years of work")
    done = cli("export", smoke.file, "--format", "onnx", "--out", file, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"{file} is there already. Choose another name, or allow overwriting an earlier export."
    )
    assert file.read_text() == "years of work"


@pytest.mark.slow
def test_the_language_part_is_exported_as_onnx(smoke: Ran, tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_text("an earlier one")
    words = ("--format", "onnx", "--out", file, "--overwrite")
    assert "in onnxruntime logits differ by" in cli("export", smoke.file, *words).stdout
    pruned = load_pruned(smoke.file.parent / "smoke.pruned", device="cpu")
    assert verify_onnx(pruned, file).logit_difference < 1e-2
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_ctrl_c_leaves_a_study_that_resumes(checkpoint: Path, tmp_path: Path) -> None:
    """With a seed that the file does not know of, the study is named by its database."""
    file, output = write_tiny(checkpoint, tmp_path), tmp_path / "output"
    process = started("run", file, "--set", "study.seed=3", output=output)
    wait_for_trials(file.with_suffix(".db"), 5)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(300)
    told = output.read_text()
    assert process.exitcode == 130, told
    assert "Traceback" not in told
    cure = re.search(r"continue with: python -m effllava_optuna\.study (.*)", told)
    assert cure is not None, told
    verb, *named = shlex.split(cure[1])
    assert (verb, named[0], named[2:]) == ("resume", "--storage", ["--study-name", "tiny"])
    assert '"accuracy_test": null' in cli("report", *named, "-f", "json").stdout
    cli("resume", *named)
    found = json.loads(cli("report", *named, "-f", "json").stdout)
    assert found["trials"]["complete"] == TINY_TRIALS
    assert found["chosen"] is not None


def wait_for_trials(database: Path, count: int, timeout: float = 600) -> None:
    """Wait until a database has that many complete trials."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if database.is_file():
            try:
                with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
                    (done,) = connection.execute(
                        "select count(*) from trials join trial_values using (trial_id) "
                        "where state = 'COMPLETE' and objective = 1"
                    ).fetchone()
                if done >= count:
                    return
            except sqlite3.Error:
                pass
        time.sleep(0.05)
    raise AssertionError(f"{database} never had {count} complete trials")


def test_the_readme_names_every_verb_or_where_they_are() -> None:
    readme = (ROOT / "README.md").read_text()
    for verb in VERBS:
        assert f"effllava_optuna.study {verb}" in readme or f"`{verb}`" in readme
