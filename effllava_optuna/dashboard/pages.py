"""Figures, notes and attached files that optuna-dashboard shows with a study."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

from optuna.exceptions import ExperimentalWarning

from effllava_optuna.dashboard.notes import control_note, study_note
from effllava_optuna.storage.artifact_store import finished_trial_attachment
from effllava_optuna.storage.storage_internals import (
    batched_system_attrs,
    trial_ids,
    write_system_attrs,
)
from effllava_optuna.storage.study_facts import read_study_facts

if TYPE_CHECKING:
    from optuna import Study

    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.storage.artifact_store import ArtifactStore


def draw_pages(session: SearchSession) -> None:
    """Update the figures and notes of the study of a session and of its control study."""
    write_pages(session.study, session.epochs.control_study.study)


def attach_results(session: SearchSession) -> None:
    """Attach the policy and its picture to the trials of the finalists."""
    attach_policies(session.study, session.epochs.artifact_store)


def write_pages(study: Study, control: Study) -> None:
    """Write the figures and notes of a study and its control study, replacing earlier ones.

    All attributes of a study are written in one transaction, if its storage supports it.
    """
    # Imported here because plotly is slow to import.
    from optuna_dashboard import save_note, save_plotly_graph_object

    from effllava_optuna.report import study_document
    from effllava_optuna.report.figures.study_figures import study_figures

    facts = read_study_facts(study)
    document = study_document(facts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        with batched_system_attrs(study) as batched:
            for name, figure in study_figures(facts, document).items():
                save_plotly_graph_object(batched, figure, graph_object_id=name)
            save_note(batched, study_note(study, document))
        with batched_system_attrs(control) as batched:
            save_note(batched, control_note(study.study_name))
        if control.metric_names is None:
            measure = document["measures"].get("proxy", "accuracy")
            control.set_metric_names([f"proxy {measure}"])


def attach_policies(study: Study, artifact_store: ArtifactStore) -> None:
    """Attach ``policy.json`` and ``policy.png`` to the trials of the finalists.

    Nothing is attached before the end of the study.
    """
    from effllava_optuna.report.figures.policy_picture import draw_policy

    facts = read_study_facts(study)
    if facts.structure is None or facts.results is None:
        return
    ids = trial_ids(study)
    dense_widths = {component.id: component.width for component in facts.structure.components}
    attrs = {}
    for row in facts.results["front"]:
        number = row["trial"]
        title = f"{study.study_name}, trial {number}: {row['keep_ratio']:.1%} kept"
        picture = draw_policy(facts.structure, row["policy"], title)
        policy = {"study": study.study_name, "dense_widths": dense_widths} | row
        for content, label, mimetype in (
            (picture, "policy.png", "image/png"),
            (json.dumps(policy, indent=1).encode(), "policy.json", "application/json"),
        ):
            key, value = finished_trial_attachment(
                ids[number], artifact_store.write(content), label, mimetype
            )
            attrs[key] = value
    write_system_attrs(study, attrs)
