"""What is written to a study for its page in the dashboard."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import optuna
import plotly.graph_objects as go
import pytest
from optuna.trial import TrialState, create_trial
from optuna_dashboard import get_note, save_note, save_plotly_graph_object
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

from effllava_optuna.dashboard.app import application
from effllava_optuna.dashboard.notes import study_note
from effllava_optuna.dashboard.pages import attach_results, draw_pages
from effllava_optuna.report import study_document
from effllava_optuna.search.objective import PruningObjective
from effllava_optuna.search.runner import Callbacks, conclude, resume
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.storage_internals import (
    batched_system_attrs,
    storage_of,
    study_id_of,
)
from effllava_optuna.storage.studies import open_study
from effllava_optuna.storage.study_facts import read_study_facts
from tests.study_fixtures import FinishedStudy, copy_study

if TYPE_CHECKING:
    from pathlib import Path


def system_attrs(study: optuna.Study) -> dict[str, Any]:
    return storage_of(study).get_study_system_attrs(study_id_of(study))


def trial_on_page(study: optuna.Study, url: str, number: int) -> dict[str, Any]:
    """Return a trial as the dashboard serves it."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ["PATH_INFO"] = f"/api/studies/{study_id_of(study)}"
    body = b"".join(application(study, url)(environ, lambda *_: None))
    trial: dict[str, Any] = json.loads(body)["trials"][number]
    return trial


def test_a_finished_study_without_its_page_gets_it_when_it_is_resumed(
    smoke: FinishedStudy, tmp_path: Path
) -> None:
    url = f"sqlite:///{copy_study(smoke.file, tmp_path / 'copy').with_suffix('.db')}"
    study = open_study(open_storage(url), "smoke")
    save_note(study, "old")
    before = system_attrs(study)
    with resume(study, url) as session:
        conclude(session, Callbacks(draw_pages=draw_pages, attach_results=attach_results))
    after = system_attrs(study)
    assert "**Finished**" in get_note(study)
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    assert {key.partition(":note")[0] for key in changed} == {"dashboard"}


def test_an_enqueued_policy_above_the_budget_is_infeasible_on_its_page(
    smoke: FinishedStudy, tmp_path: Path
) -> None:
    url = f"sqlite:///{copy_study(smoke.file, tmp_path / 'copy').with_suffix('.db')}"
    study = open_study(open_storage(url), "smoke")
    distributions: Any = study.trials[0].distributions
    study.enqueue_trial({name: each.high for name, each in distributions.items()})
    with resume(study, url) as session:
        session.schedule.endless = True
        study.optimize(PruningObjective(session), n_trials=1)
    trial = study.trials[-1]
    assert trial.user_attrs["kind"] == "user"
    assert trial.user_attrs["over_budget"].startswith("0.7750 of the weights ")
    (violation,) = trial_on_page(study, url, trial.number)["constraints"]
    assert violation == pytest.approx(0.775)


def test_batched_notes_and_figures_equal_those_of_the_dashboard(tmp_path: Path) -> None:
    figure = go.Figure()
    for n_points in (3000, 3):  # the smaller figure must leave nothing of the larger one
        figure.data = []
        figure.add_scatter(y=list(range(n_points)))
        for url in (f"sqlite:///{tmp_path / 'a.db'}", f"journal:///{tmp_path / 'a.log'}"):
            study = optuna.create_study(
                storage=open_storage(url, create=True), study_name="a", load_if_exists=True
            )
            with batched_system_attrs(study) as batched:
                save_note(batched, "words" * 1000)
                save_plotly_graph_object(batched, figure, graph_object_id="f")
            assert get_note(study) == "words" * 1000
            (stored,) = get_plotly_graph_objects(system_attrs(study)).values()
            assert stored == figure.to_json()


def test_enqueued_trials_are_no_planned_ones(smoke: FinishedStudy, tmp_path: Path) -> None:
    url = f"sqlite:///{copy_study(smoke.file, tmp_path / 'copy').with_suffix('.db')}"
    study = open_study(open_storage(url), "smoke")
    document = study_document(read_study_facts(study)) | {"chosen": None}
    done = {"complete": document["trials"]["planned"] - 1, "pruned": 0, "fail": 0}
    assert "**Searching**" in study_note(study, document | {"trials": document["trials"] | done})
    study.add_trial(
        create_trial(
            state=TrialState.FAIL, system_attrs={"fixed_params": {}}, user_attrs={"kind": "user"}
        )
    )
    trials = document["trials"] | done | {"fail": 1}
    assert "**Searching**" in study_note(study, document | {"trials": trials})
    trials |= {"complete": document["trials"]["planned"]}
    assert "**The search is over**" in study_note(study, document | {"trials": trials})
