"""The commands that run and export a study: ``run``, ``resume``, ``export``."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sqlite3
import time
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from effllava_optuna import load_pruned
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.studies import open_study
from effllava_optuna.surgery import verify_onnx
from tests.study_fixtures import (
    ROOT,
    TINY_TRIALS,
    FinishedStudy,
    copy_study,
    invoke,
    start_command,
    write_tiny,
)

VERBS_OF_README = ("check", "run", "allocate", "resume", "status", "report", "pick", "export",
                   "recover", "evaluate", "dashboard")  # fmt: skip
KEYS_OF_POLICY = {
    "trial", "epoch", "policy", "quality", "accuracy_proxy", "accuracy_validation",
    "accuracy_test", "risk", "latency_ms", "latency_ms_measured", "speedup_predicted",
    "speedup_measured", "keep_ratio",
}  # fmt: skip


def test_a_calibrated_study_is_resumed_to_a_verified_export(smoke: FinishedStudy) -> None:
    assert "dense model:" in smoke.output
    assert re.search(r"fitted as if to \d+ to \d+ tokens of equal weight\n", smoke.output)
    assert "(chosen)" in smoke.output
    assert "reloaded in a fresh process" in smoke.output
    chosen = smoke.document()["chosen"]
    pruned = load_pruned(smoke.file.parent / "smoke.pruned", device="cpu")
    widths = {component.id: component.width for component in pruned.structure.components}
    assert widths == chosen["policy"]
    assert pruned.model.num_parameters() == chosen["parameters"]


def test_report_and_status_return_the_same_complete_document(smoke: FinishedStudy) -> None:
    document = smoke.document("report")
    assert document == smoke.document("status")
    assert document["epochs"] == {"planned": 2, "opened": 2}
    assert document["trials"]["complete"] == document["trials"]["planned"] == 48
    assert len(document["hypervolume"]) == 2
    assert 1 <= len(document["front"]) <= 3
    rows = [
        *document["front"],
        document["chosen"],
        document["dense"],
        document["uniform"],
        document["uniform_by_kind"],
    ]
    for row in rows:
        assert set(row) >= KEYS_OF_POLICY
        assert row["latency_ms_measured"] > 0
        assert 0 < row["keep_ratio"] <= 1
        low, high = row["accuracy_test_interval"]
        assert low <= row["accuracy_test"] <= high
    assert document["chosen"] in document["front"]
    for row in (document["chosen"], document["uniform_by_kind"]):
        assert row["keep_ratio"] <= 0.225
    assert document["dense"]["accuracy_test"] > 0.9


def test_the_chosen_policy_is_the_best_on_validation(smoke: FinishedStudy) -> None:
    document = smoke.document()
    best = max(row["accuracy_validation"] for row in document["front"])
    assert document["chosen"]["accuracy_validation"] == best


def test_a_report_has_the_noise_of_the_proxy_and_the_choices_of_other_rules(
    smoke: FinishedStudy,
) -> None:
    document = smoke.document()
    noise, chosen = document["noise"], document["chosen"]["trial"]
    assert (noise["samples"], noise["resamples"]) == (64, 2000)
    assert noise["groups"] == 32  # two questions on each picture
    assert noise["chosen"]["trial"] == chosen
    fractions = [winner["fraction"] for winner in noise["winners"]]
    assert fractions == sorted(fractions, reverse=True)
    assert sum(fractions) <= 1.0001
    assert noise["second"]["difference"] >= 0
    assert noise["uniform_by_kind"]["deviation"] > 0
    choices = {choice["rule"]: choice for choice in document["choices"]}
    assert set(choices) == {"proxy", "smoothed", "validation"}
    assert choices["validation"]["trial"] == chosen
    best = max(document["front"], key=lambda row: row["quality"])
    assert choices["proxy"]["trial"] == best["trial"] == noise["best"]["trial"]
    for row in document["front"]:
        assert row["quality_smoothed"] == pytest.approx(row["quality"], abs=0.1)
    assert document["dense"]["quality_smoothed"] is None
    assert "By the 64 proxy samples alone, " in smoke.output
    agree = len({choice["trial"] for choice in choices.values()}) == 1
    assert (f"is the best of the {len(document['front'])} finalists by" in smoke.output) is agree
    assert ("Choice among the finalists" in smoke.output) is not agree


def test_a_report_has_the_sensitivity_curves_of_the_calibration(smoke: FinishedStudy) -> None:
    document = smoke.document()
    sensitivity = document["sensitivity"]
    assert sensitivity["source"] == "residual"
    assert list(sensitivity["curves"]) == list(document["dense"]["policy"])
    for component, dense in document["dense"]["policy"].items():
        curve = {int(width): loss for width, loss in sensitivity["curves"][component].items()}
        assert curve[dense] == 0
        assert max(curve.values()) > 0


def test_trials_have_the_attributes_that_the_dashboard_shows(smoke: FinishedStudy) -> None:
    study = open_study(open_storage(smoke.url), "smoke")
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    for trial in trials:
        for name in ("epoch", "accuracy", "expected", "risk", "keep_ratio", "log_probability"):
            assert isinstance(trial.user_attrs[name], (int, float))
        assert len(trial.user_attrs["hits"]) == len(trial.user_attrs["quality_scores"]) == 64
        mean = sum(trial.user_attrs["quality_scores"]) / 64
        assert mean == pytest.approx(trial.user_attrs["expected"], abs=1e-4)
        assert trial.values[0] == pytest.approx(
            trial.user_attrs["expected"] - 0.02 * trial.user_attrs["risk"], abs=1e-5
        )
    reevaluated = [trial for trial in trials if trial.user_attrs["kind"] == "reeval"]
    assert reevaluated
    (update,) = smoke.document()["projector"]
    for trial in reevaluated:
        origin = study.trials[trial.user_attrs["origin"]]
        assert (trial.user_attrs["epoch"], origin.user_attrs["epoch"]) == (1, 0)
        assert trial.params == origin.params
        changed = trial.user_attrs["weight_state"] != origin.user_attrs["weight_state"]
        assert changed == (update["steps"] > 0)


def test_run_refuses_an_existing_study_and_names_resume(smoke: FinishedStudy) -> None:
    done = invoke("run", smoke.file, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "Study 'smoke' exists already. Continue it with `resume`, or choose another study.name."
    )


def test_resume_refuses_a_changed_study_file(smoke: FinishedStudy, tmp_path: Path) -> None:
    file = copy_study(smoke.file, tmp_path / "changed")
    file.write_text(file.read_text().replace("epochs = 2", "epochs = 3"))
    done = invoke("resume", file, check=False)
    assert done.returncode == 2
    assert "search.epochs is 3 in the file and 2 in the study" in done.stderr


def test_resume_leaves_a_finished_study_and_its_export_as_they_are(smoke: FinishedStudy) -> None:
    export = smoke.file.parent / "smoke.pruned"
    before = {path: path.stat().st_mtime_ns for path in export.rglob("*")}
    printed = invoke("resume", smoke.file).stdout
    assert printed.startswith("The search of 'smoke' is finished.\n")
    assert f"Its export in {export} is complete.\n" in printed
    assert f"effllava-optuna report {smoke.file}" in printed
    assert {path: path.stat().st_mtime_ns for path in export.rglob("*")} == before


def test_export_refuses_a_trial_that_does_not_exist(smoke: FinishedStudy, tmp_path: Path) -> None:
    done = invoke("export", smoke.file, "--trial", 9999, "--out", tmp_path / "x", check=False)
    assert done.returncode == 2
    assert "Trial 9999 of 'smoke' was not measured" in done.stderr
    assert not (tmp_path / "x").exists()


def test_export_does_not_overwrite_an_onnx_file(smoke: FinishedStudy, tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_text("years of work")
    done = invoke("export", smoke.file, "--format", "onnx", "--out", file, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{file} ")
    assert file.read_text() == "years of work"


@pytest.mark.families
def test_a_sequential_export_is_measured_before_and_after(
    smoke: FinishedStudy, tmp_path: Path
) -> None:
    file, out = copy_study(smoke.file, tmp_path / "study"), tmp_path / "sequential"
    printed = " ".join(invoke("export", file, "--sequential", "--out", out).stdout.split())
    accuracies = re.search(
        r"fitted in sequence: accuracy (\S+) -> (\S+) on the proxy set, which it was fitted to, "
        r"and accuracy (\S+) -> (\S+) on the validation set",
        printed,
    )
    assert accuracies is not None
    assert all(0 < float(accuracy) <= 1 for accuracy in accuracies.groups())
    chosen = smoke.document()["chosen"]
    assert float(accuracies[3]) == pytest.approx(chosen["accuracy_validation"], abs=1e-3)
    before = load_pruned(smoke.file.parent / "smoke.pruned", device="cpu")
    after = load_pruned(out, device="cpu")
    assert after.structure == before.structure
    changed = {
        name.rsplit(".", 2)[1]
        for name, weight in after.model.state_dict().items()
        if not torch.equal(weight, before.model.state_dict()[name])
    }
    assert changed == {"o_proj", "down_proj"}


@pytest.mark.families
def test_the_language_part_is_exported_as_onnx(smoke: FinishedStudy, tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_text("an earlier one")
    words = ("--format", "onnx", "--out", file, "--overwrite")
    assert "in onnxruntime logits differ by" in invoke("export", smoke.file, *words).stdout
    pruned = load_pruned(smoke.file.parent / "smoke.pruned", device="cpu")
    assert verify_onnx(pruned, file).logit_difference < 1e-2
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.kill
def test_an_interrupted_study_resumes_by_the_printed_command(
    checkpoint: Path, tmp_path: Path
) -> None:
    """After ``run --set``, the printed command names the study by its database."""
    file, output = write_tiny(checkpoint, tmp_path), tmp_path / "output"
    process = start_command("run", file, "--set", "study.seed=3", output=output)
    wait_for_trials(file.with_suffix(".db"), 5)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join(300)
    printed = output.read_text()
    assert process.exitcode == 130, printed
    assert "Traceback" not in printed
    command = re.search(r"continue with: effllava-optuna (.*)", printed)
    assert command is not None, printed
    verb, *study = shlex.split(command[1])
    assert (verb, study[0], study[2:]) == ("resume", "--storage", ["--study-name", "tiny"])
    assert '"accuracy_test": null' in invoke("report", *study, "-f", "json").stdout
    invoke("resume", *study)
    document = json.loads(invoke("report", *study, "-f", "json").stdout)
    assert document["trials"]["complete"] == TINY_TRIALS
    assert document["chosen"] is not None


def wait_for_trials(database: Path, count: int, timeout: float = 600) -> None:
    """Wait until a database has that many complete trials."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if database.is_file():
            try:
                with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
                    (complete,) = connection.execute(
                        "select count(*) from trials join trial_values using (trial_id) "
                        "where state = 'COMPLETE' and objective = 1"
                    ).fetchone()
                if complete >= count:
                    return
            except sqlite3.Error:
                pass
        time.sleep(0.05)
    raise AssertionError(f"{database} never had {count} complete trials")


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    for verb in VERBS_OF_README:
        assert re.search(rf"(effllava-optuna|effllava_optuna\.study) +{verb}\b|`{verb}`", readme)
