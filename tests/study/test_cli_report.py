"""What a study has found, by the command line: ``report`` and its page, ``pick``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.study.conftest import Ran, cli, clone, environment


@pytest.fixture
def study(smoke: Ran, tmp_path: Path) -> Path:
    """The finished smoke study, in a directory of its own."""
    return clone(smoke.file, tmp_path / "mine")


def begun(calibrated: Path, tmp_path: Path) -> Path:
    return clone(calibrated, tmp_path / "begun")


def left_by(file: Path) -> set[str]:
    """Name what lies beside a study; SQLite's own files come and go."""
    own = {file.name, *(f"smoke.{end}" for end in ("db", "db-wal", "db-shm", "artifacts"))}
    return {place.name for place in file.parent.iterdir()} - own


def found(*words: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(cli(*words, "-f", "json").stdout)
    return document


def test_a_report_leaves_one_page_beside_the_file(study: Path) -> None:
    done = cli("report", study)
    assert "<- chosen" in done.stdout
    assert done.stdout.rstrip().endswith(f"page: {study.with_suffix('.html')}")
    assert left_by(study) == {"smoke.html"}
    page = study.with_suffix(".html").read_text()
    assert page.startswith("<!doctype html>")
    outside = re.findall(r"""(?:src|href)\s*=\s*["']?[a-z]+:""", page.partition("</script>")[2])
    assert outside == []
    assert found("report", study)["digest"] in page


def test_a_report_is_read_from_the_database_alone_and_without_torch(study: Path) -> None:
    url = f"sqlite:///{study.with_suffix('.db')}"
    study.unlink()
    run = f"""
import sys
from effllava_optuna.study.cli import main
for verb in ("report", "pick"):
    main([verb, "--storage", {url!r}, "--study-name", "smoke"], standalone_mode=False)
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", run], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert (study.parent / "smoke.html").is_file()


def test_a_study_under_way_is_reported_and_picked_from(calibrated: Path, tmp_path: Path) -> None:
    file = begun(calibrated, tmp_path)
    assert "The search is not over" in cli("report", file).stdout
    assert "resume" in file.with_suffix(".html").read_text()
    done = cli("pick", file, check=False)
    assert done.returncode == 2
    assert "no policy on its front yet" in done.stderr


def test_as_json_a_report_writes_a_page_only_where_it_is_told_to(study: Path) -> None:
    document = found("report", study)
    assert not study.with_suffix(".html").exists()
    assert document["comparisons"]
    assert document["provenance"]["torch"]
    page = study.parent / "other.html"
    assert found("report", study, "--out", page) == document
    assert page.is_file()


def test_a_page_that_cannot_be_written_is_named(study: Path) -> None:
    for place in (study.parent / "no" / "where.html", Path("/proc/a.html")):
        done = cli("report", study, "--out", place, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"{place} cannot be written: ")
        assert len(done.stderr.strip().splitlines()) == 1


def test_studies_are_compared_on_one_page(study: Path, smoke: Ran) -> None:
    done = cli("report", "--compare", study, smoke.file, "--out", study.parent / "both.html")
    assert "share" not in done.stdout
    assert (study.parent / "both.html").read_text().count(">smoke<") == 2
    both = found("report", "--compare", study, smoke.file)
    assert both["differ"] == []
    assert both["groups"][0]["studies"] == 2
    url = f"sqlite:///{study.with_suffix('.db')}"
    named = ("--storage", url, "--study-name", "smoke")
    assert len(found("report", "--compare", *named, "--study-name", "smoke")["studies"]) == 2
    for words, told in (
        (("--compare", study), "nothing to compare with"),
        ((study, smoke.file), "Add --compare"),
        (named[:2], "No study is given."),
    ):
        wrong = cli("report", *words, check=False)
        assert wrong.returncode == 2
        assert told in wrong.stderr


def test_without_a_rule_the_chosen_policy_is_picked(study: Path) -> None:
    chosen = found("report", study)["chosen"]
    picked = found("pick", study)
    assert picked["picked"] == chosen
    assert picked["split"] == "validation"
    assert picked["sure"]["samples"] == 100
    said = cli("pick", study).stdout
    assert f"export {study} --trial {chosen['trial']} --out pruned" in said
    assert left_by(study) == set()


def test_a_rule_is_kept_to(study: Path) -> None:
    front = found("report", study)["front"]
    for row in front:
        limit = row["latency_ms_measured"]
        picked = found("pick", study, "--latency-ms", limit)["picked"]
        rivals = [r["accuracy_validation"] for r in front if r["latency_ms_measured"] <= limit]
        assert picked["latency_ms_measured"] <= limit
        assert picked["accuracy_validation"] == max(rivals)
    fastest = min(front, key=lambda row: row["latency_ms_measured"])
    assert found("pick", study, "--accuracy-drop", 1)["picked"] == fastest


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--speedup", "1000"), "keeps to this: at least 1000x faster (the closest has "),
        (("--speedup", "nan"), "--speedup is no number."),
        (("--params", "1.5"), "1.5"),
        (("--latency-ms", "-1"), "-1"),
        (("--accuracy-drop", "some"), "some"),
    ],
)
def test_a_rule_that_cannot_be_kept_to_is_named(
    study: Path, words: tuple[str, ...], told: str
) -> None:
    done = cli("pick", study, *words, check=False)
    assert done.returncode == 2
    assert told in done.stderr


def test_parameters_and_widths_predicted_are_those_measured(smoke: Ran) -> None:
    """What is said of a study under way comes from its anatomy; at its end models are counted."""
    from effllava_optuna.policy import Policy
    from effllava_optuna.study.facts import facts_of
    from effllava_optuna.study.storage import open_storage, open_study

    study = open_study(open_storage(f"sqlite:///{smoke.file.with_suffix('.db')}"), "smoke")
    facts = facts_of(study)
    if facts.anatomy is None or facts.bundle is None or facts.results is None:
        raise AssertionError
    dense = facts.bundle["dense"]["parameters"]
    for row in facts.results["front"]:
        policy = Policy.of(facts.anatomy, row["policy"])
        gone = facts.anatomy.parameters - policy.parameters(facts.anatomy)
        assert row["parameters"] == dense - gone
