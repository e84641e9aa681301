"""The note of a study: a command that works, failures, and no secrets."""

from __future__ import annotations

import shlex
from contextlib import chdir
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial
from optuna_dashboard import get_note

from effllava_optuna.cli import PROGRAM
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.dashboard.notes import study_note
from effllava_optuna.report import study_document
from effllava_optuna.report.policy_table import status_lines
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.storage_internals import storage_of
from effllava_optuna.storage.studies import create_study, open_study
from effllava_optuna.storage.study_facts import read_study_facts
from effllava_optuna.storage.urls import shareable_url
from tests.study_fixtures import FinishedStudy, invoke

if TYPE_CHECKING:
    from pathlib import Path


def test_the_command_in_the_note_exports_the_chosen_trial(smoke: FinishedStudy) -> None:
    study = open_study(open_storage(f"sqlite:///{smoke.file.with_suffix('.db')}"), "smoke")
    (command,) = [
        line for line in get_note(study).splitlines() if line.startswith("effllava-optuna")
    ]
    program, verb, *words = shlex.split(command)
    assert (program, verb) == (PROGRAM, "export")
    trial = smoke.document()["chosen"]["trial"]
    assert words[4:] == ["--trial", str(trial), "--out", f"trial-{trial}.pruned"]
    with chdir(smoke.file.parent):
        assert f"Trial {trial} was chosen" in invoke("status", *words[:4]).stdout


def test_the_note_opens_with_what_was_chosen(smoke: FinishedStudy) -> None:
    document = smoke.document()
    title, _, conclusion, *_ = get_note(open_study(open_storage(smoke.url), "smoke")).splitlines()
    assert title == "# smoke"
    assert conclusion == f"**{status_lines(document)[-1]}**"
    assert f"Trial {document['chosen']['trial']} was chosen: " in conclusion


def test_the_note_counts_epochs_from_one(smoke: FinishedStudy) -> None:
    rows = [line for line in get_note(open_study(open_storage(smoke.url), "smoke")).splitlines()
            if line.startswith(("| trial", "| **trial"))]  # fmt: skip
    epochs = [int(row.split("|")[2].strip(" *")) for row in rows]
    assert epochs == [row["epoch"] + 1 for row in smoke.document()["front"]]


def test_the_note_has_the_noise_beside_the_comparisons(smoke: FinishedStudy) -> None:
    study = open_study(open_storage(smoke.url), "smoke")
    lines = get_note(study).splitlines()
    compared = [index for index, line in enumerate(lines) if line.startswith("- On test, ")]
    (noise,) = [index for index, line in enumerate(lines) if line.startswith("- On another draw")]
    assert noise == max(compared) + 1
    assert "are within the noise of the draw" in lines[noise + 1]


def test_the_note_counts_failures_by_their_reason() -> None:
    config = {"study": {"name": "a"}, "model": {"path": "m"}, "task": {"name": "digits"}}
    study = create_study(InMemoryStorage(), StudyConfig.of(config))

    def note() -> str:
        return study_note(study, study_document(read_study_facts(study)))

    assert "Failed" not in note()
    for reason in ("MemoryError: full", "MemoryError: full", "TimeoutError: late"):
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"reason": reason}))
    assert (
        "- Failed: 3 (attribute `reason`): MemoryError: full (2); TimeoutError: late (1)" in note()
    )


def test_the_url_in_a_note_has_no_password_and_no_directory(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path / 'a.db'}", f"journal:///{tmp_path / 'a.log'}"):
        study = optuna.create_study(storage=open_storage(url, create=True))
        assert shareable_url(study) == url.replace(f"{tmp_path}/", "")
    study = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path / 'a.db'}"))
    storage: Any = storage_of(study)
    storage._backend.url = "postgresql+psycopg://me:secret@host/name"
    assert shareable_url(study) == "postgresql+psycopg://me:***@host/name"
