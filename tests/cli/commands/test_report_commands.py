"""The commands that read results: ``report`` and its page, ``pick``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial

from effllava_optuna.policy import Policy
from effllava_optuna.samplers import this_process
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.studies import open_study
from effllava_optuna.storage.study_facts import read_study_facts
from tests.study_fixtures import (
    FinishedStudy,
    copy_study,
    ended_process,
    invoke,
    url_of_study,
)


@pytest.fixture
def study(smoke: FinishedStudy, tmp_path: Path) -> Path:
    """The finished smoke study, in a directory of its own."""
    return copy_study(smoke.file, tmp_path / "study")


def files_beside(file: Path) -> set[str]:
    """Return the files beside a study; SQLite's own files come and go."""
    own = {file.name, *(f"smoke.{end}" for end in ("db", "db-wal", "db-shm", "artifacts"))}
    return {path.name for path in file.parent.iterdir()} - own


def json_of(*words: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(invoke(*words, "-f", "json").stdout)
    return document


def test_a_report_writes_one_page_beside_the_study_file(study: Path) -> None:
    done = invoke("report", study)
    assert "(chosen)" in done.stdout
    assert done.stdout.rstrip().endswith(f"page: {study.with_suffix('.html')}")
    assert files_beside(study) == {"smoke.html"}
    page = study.with_suffix(".html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<h2>Sensitivity curves</h2>" in page
    links = re.findall(r"""(?:src|href)\s*=\s*["']?[a-z]+:""", page.partition("</script>")[2])
    assert links == []
    assert json_of("report", study)["digest"] in page


def test_a_report_needs_only_the_database(study: Path) -> None:
    study.unlink()
    invoke("report", "--storage", url_of_study(study), "--study-name", "smoke")
    assert (study.parent / "smoke.html").is_file()


def test_a_study_that_is_not_finished_is_reported_but_has_no_pick(
    calibrated: Path, tmp_path: Path
) -> None:
    file = copy_study(calibrated, tmp_path / "begun")
    invoke("report", file)
    assert "resume" in file.with_suffix(".html").read_text()
    done = invoke("pick", file, check=False)
    assert done.returncode == 2
    assert "front" in done.stderr


def test_a_report_in_json_writes_a_page_only_with_out(study: Path) -> None:
    document = json_of("report", study)
    assert not study.with_suffix(".html").exists()
    assert document["comparisons"]
    assert document["provenance"]["torch"]
    page = study.parent / "other.html"
    assert json_of("report", study, "--out", page) == document
    assert page.is_file()


def test_a_page_that_cannot_be_written_is_named(study: Path) -> None:
    for path in (study.parent / "no" / "where.html", Path("/proc/a.html")):
        done = invoke("report", study, "--out", path, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"{path} cannot be written: ")
        assert len(done.stderr.strip().splitlines()) == 1


def test_studies_are_compared_on_one_page(study: Path, smoke: FinishedStudy) -> None:
    invoke("report", "--compare", study, smoke.file, "--out", study.parent / "both.html")
    assert (study.parent / "both.html").read_text().count(">smoke\n") == 2
    comparison = json_of("report", "--compare", study, smoke.file)
    assert comparison["differing_keys"] == []
    assert comparison["variants"][0]["studies"] == 2
    named = ("--storage", url_of_study(study), "--study-name", "smoke")
    assert len(json_of("report", "--compare", *named, "--study-name", "smoke")["studies"]) == 2


def test_a_wrong_number_of_studies_is_refused(smoke: FinishedStudy) -> None:
    for words, message in (
        (("--compare", smoke.file), "--compare needs at least two studies."),
        ((smoke.file, smoke.file), "Add --compare"),
        (("--storage", smoke.url), "No study is given."),
    ):
        done = invoke("report", *words, check=False)
        assert done.returncode == 2
        assert message in done.stderr


def test_pick_without_limits_picks_the_chosen_policy(study: Path) -> None:
    chosen = json_of("report", study)["chosen"]
    document = json_of("pick", study)
    assert document["picked"] == chosen
    assert document["split"] == "validation"
    assert document["confidence"]["samples"] == 100
    printed = invoke("pick", study).stdout
    assert f"effllava-optuna export {study} --trial {chosen['trial']} --out pruned" in printed
    assert files_beside(study) == set()


def test_a_picked_policy_is_the_best_within_the_limits(smoke: FinishedStudy) -> None:
    front = json_of("report", smoke.file)["front"]
    for row in front:
        limit = row["latency_ms_measured"]
        picked = json_of("pick", smoke.file, "--latency-ms", limit)["picked"]
        rivals = [r["accuracy_validation"] for r in front if r["latency_ms_measured"] <= limit]
        assert picked["latency_ms_measured"] <= limit
        assert picked["accuracy_validation"] == max(rivals)
    fastest = min(front, key=lambda row: row["latency_ms_measured"])
    assert json_of("pick", smoke.file, "--accuracy-drop", 1)["picked"] == fastest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--speedup", "1000"), "1000x faster"),
        (("--speedup", "nan"), "--speedup is not a number."),
        (("--params", "1.5"), "1.5"),
        (("--latency-ms", "-1"), "-1"),
        (("--accuracy-drop", "some"), "some"),
    ],
)
def test_limits_that_no_policy_meets_are_named(
    smoke: FinishedStudy, words: tuple[str, ...], message: str
) -> None:
    done = invoke("pick", smoke.file, *words, check=False)
    assert done.returncode == 2
    assert message in done.stderr


def test_predicted_parameters_are_those_of_the_measured_models(smoke: FinishedStudy) -> None:
    """Before the end parameters are predicted from the structure; at the end they are counted."""
    facts = read_study_facts(open_study(open_storage(smoke.url), "smoke"))
    if facts.structure is None or facts.calibration is None or facts.results is None:
        raise AssertionError
    dense = facts.calibration["dense"]["parameters"]
    for row in facts.results["front"]:
        policy = Policy.of(facts.structure, row["policy"])
        removed = facts.structure.parameters - policy.parameters
        assert row["parameters"] == dense - removed


def test_the_status_of_a_finished_study_names_the_next_step(study: Path) -> None:
    assert invoke("status", study).stdout.endswith(f"Results: effllava-optuna report {study}\n")


def test_the_status_says_that_no_process_is_at_work(calibrated: Path, tmp_path: Path) -> None:
    file = copy_study(calibrated, tmp_path / "begun")
    assert invoke("status", file).stdout.endswith(
        f"If no process works on it, continue with effllava-optuna resume {file}\n"
    )
    begun = open_study(open_storage(url_of_study(file)), "smoke")
    begun.add_trial(
        create_trial(state=TrialState.RUNNING, system_attrs={"owner": ended_process()})
    )
    printed = invoke("status", file).stdout
    assert "Of the running trials, 1 of 1 belong to an ended process." in printed
    assert printed.endswith(
        f"No process works on it: continue with effllava-optuna resume {file}\n"
    )
    begun.add_trial(create_trial(state=TrialState.RUNNING, system_attrs={"owner": this_process()}))
    printed = invoke("status", file).stdout
    assert printed.endswith("Of the running trials, 1 of 2 belong to an ended process.\n")
