"""Promise 5: killed anywhere and resumed, a study measures what an undisturbed one measures."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial

from effllava_optuna.search.runner import conclude, resume, search
from effllava_optuna.search.study_answers import published_answers, stored_answers
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.studies import open_study
from effllava_optuna.tasks import Digits, Split
from tests.cli.commands.test_study_commands import wait_for_trials
from tests.study_fixtures import (
    FinishedStudy,
    begin_study,
    copy_study,
    invoke,
    start_command,
    url_of_study,
    write_tiny,
)


@pytest.mark.kill
def test_three_kills_change_nothing(
    calibrated: Path, smoke: FinishedStudy, tmp_path: Path
) -> None:
    killed = copy_study(calibrated, tmp_path / "killed")
    database = killed.with_suffix(".db")
    # The second kill falls into the training of the projector, or close to it.
    for done in (7, 24, 41):
        process = start_command("resume", killed)
        wait_for_trials(database, done)
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    url = f"sqlite:///{database}"
    study = open_study(open_storage(url), "smoke")
    with resume(study, url) as session:
        search(session)
        conclude(session)
    expected, resumed = smoke.document("status"), FinishedStudy(killed, "").document("status")
    assert expected["trials"]["complete"] == 48
    assert resumed["trials"]["complete"] == 48
    assert resumed["digest"] == expected["digest"]
    assert resumed["hypervolume"] == expected["hypervolume"]
    for row in ("chosen", "dense", "uniform_by_kind"):
        for key in ("policy", "accuracy_validation", "accuracy_test", "latency_ms"):
            assert resumed[row][key] == expected[row][key]


@pytest.mark.kill
def test_kills_and_another_process_change_nothing_in_a_study_without_labels(
    checkpoint: Path, tmp_path: Path
) -> None:
    """The first kill may fall into the answers of the dense model, the last into those to test."""
    digests, answers = [], []
    for name, kills in (("whole", ()), ("killed", (0, 7, 24))):
        (tmp_path / name).mkdir()
        file = write_tiny(checkpoint, tmp_path / name)
        rows = _unlabelled_rows(tmp_path / name)
        text = file.read_text().replace('name = "digits"', f'name = "qa"\ndata = "{rows}"')
        file.write_text(f'{text}\n[quality]\nmeasure = "agreement"\n')
        begin_study(file)
        for done in kills:
            processes = [start_command("resume", file) for _ in range(2)]
            wait_for_trials(file.with_suffix(".db"), done)
            for process in processes:
                process.kill()
                process.join(60)
        invoke("resume", file)
        study = open_study(open_storage(url_of_study(file)), "tiny")
        answers.append((published_answers(study), stored_answers(study, "test")))
        digests.append(FinishedStudy(file, "").document("status")["digest"])
    assert digests[0] == digests[1]
    assert answers[0] == answers[1]
    assert all(answers[0])


def _unlabelled_rows(directory: Path) -> str:
    with (directory / "rows.jsonl").open("w") as rows:
        for split in Split:
            for sample in Digits(proxy=16, validation=8, test=8).samples(split):
                picture = sample.load_image()
                assert picture is not None
                picture.save(directory / f"{sample.group}.png")
                row = {"image": f"{sample.group}.png", "question": sample.question}
                rows.write(f"{json.dumps(row)}\n")
    return "rows.jsonl"


def test_a_superseded_trial_of_a_killed_process_fails_at_the_end(
    smoke: FinishedStudy, tmp_path: Path
) -> None:
    """A worker may be killed when it has taken the second trial of a slot from the queue."""
    url = f"sqlite:///{copy_study(smoke.file, tmp_path / 'copy').with_suffix('.db')}"
    study = open_study(open_storage(url), "smoke")
    measured = study.get_trials(deepcopy=False)[-1]
    study.add_trial(
        create_trial(
            state=TrialState.RUNNING,
            params=measured.params,
            distributions=measured.distributions,
            user_attrs=measured.user_attrs,
        )
    )
    with resume(study, url) as session:
        search(session)
    last = study.get_trials(deepcopy=False)[-1]
    assert (last.number, last.state) == (measured.number + 1, TrialState.FAIL)
