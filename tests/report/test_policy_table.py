"""The table of policies, its notes, and the summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from effllava_optuna.report import policy_table, study_document, summary_lines
from tests.report.study_samples import CALIBRATION, CONFIG, facts, finished, text_of, two_epochs

if TYPE_CHECKING:
    from effllava_optuna.policy import ModelStructure
    from effllava_optuna.report import StudyFacts

HITS = {
    "dense": [1] * 40,
    "uniform_by_kind": [1] * 10 + [0] * 30,
    "7": [1] * 20 + [0] * 20,
}


def printed(study: StudyFacts) -> str:
    return text_of(policy_table(study_document(study)))


def test_the_chosen_policy_is_marked_and_compared(structure: ModelStructure) -> None:
    table = policy_table(study_document(finished(structure, HITS)))
    assert [row.cells[0] for row in table.rows] == [
        "dense", "uniform\nby kind", "trial 7\n(chosen)",
    ]  # fmt: skip
    assert [row.emphasized for row in table.rows] == [False, False, True]
    assert "0.500\n[0.000 1.000]" in table.rows[-1].cells
    notes = "\n".join(table.notes)
    assert "the best uniform-by-kind policy: difference +0.250 [" in notes


def test_the_summary_names_the_chosen_policy(structure: ModelStructure) -> None:
    _, chosen = summary_lines(study_document(finished(structure, HITS, opened=0)))
    assert chosen.startswith("Trial 7 was chosen: 2.00 times as fast as the dense model, with ")
    assert "On test it loses 50.0 points of accuracy [" in chosen
    assert chosen.endswith("]: 0.500 instead of 1.000.")


def test_the_summary_says_what_was_gained(structure: ModelStructure) -> None:
    hits = {**HITS, "dense": [1] * 10 + [0] * 30}
    _, chosen = summary_lines(study_document(finished(structure, hits, opened=0)))
    assert "On test it gains 25.0 points of accuracy [" in chosen
    assert chosen.endswith("]: 0.500 instead of 0.250.")


def test_the_table_is_as_narrow_as_a_terminal(structure: ModelStructure) -> None:
    document = study_document(finished(structure, HITS))
    billions = {"parameters": 6_738_415_616, "latency_ms": 12345.6, "latency_ms_measured": 12345.6}
    rows = {name: document[name] | billions for name in ("dense", "uniform_by_kind", "chosen")}
    table = policy_table(document | rows | {"front": [rows["chosen"]]})
    assert len(table.columns) == 8
    assert "6.74B" in table.rows[0].cells
    columns = zip(table.columns, *(row.cells for row in table.rows), strict=True)
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    assert sum(widths) + 2 * (len(widths) - 1) <= 100, widths


def test_the_summary_has_the_hypervolume_and_each_projector_update(
    structure: ModelStructure,
) -> None:
    update: dict[str, Any] = {
        "steps": 4, "seconds": 20.0, "latency_factor": 1.0, "latency_errors": [],
        "in_context": None,
    }  # fmt: skip
    for name in ("proxy_accuracy", "crossfit_accuracy"):
        update |= {f"{name}_before": 0.5, f"{name}_after": 0.75}
    study = facts(structure, calibration=CALIBRATION, updates=[update])
    assert summary_lines(study_document(study))[1:] == [
        "hypervolume by epoch: 0",
        "projector of epoch 1: 4 steps, 20 s, held-out accuracy 0.500 to 0.750 (training "
        "samples: 0.500 to 0.750)",
    ]


@pytest.mark.parametrize(("after", "verdict"), [(0.4, "kept"), (0.6, "not kept")])
def test_the_summary_says_whether_tables_in_context_are_used(
    structure: ModelStructure, after: float, verdict: str
) -> None:
    update = dict(two_epochs(structure).updates[0])
    for name in ("proxy_accuracy", "crossfit_accuracy"):
        update |= {f"{name}_before": 0.5, f"{name}_after": 0.75}
    compared = {
        "kept": after < 0.5, "seconds": 3.0, "before": {"loss": 0.5, "accuracy": 0.75},
        "after": {"loss": after, "accuracy": 0.8},
    }  # fmt: skip
    study = two_epochs(structure, updates=[update | {"in_context": compared}])
    assert (
        f"tables in context, epoch 1: {verdict}, 3 s, cross-fitted loss 0.500 to {after:.3f}, "
        "accuracy 0.750 to 0.800"
    ) in summary_lines(study_document(study))


def test_a_study_under_way_has_no_values_on_test(structure: ModelStructure) -> None:
    assert "The search is not over" in printed(facts(structure, calibration=CALIBRATION))


def test_the_notes_have_the_error_where_the_search_ended(structure: ModelStructure) -> None:
    update = dict(two_epochs(structure).updates[0])
    study = two_epochs(structure, updates=[update | {"latency_factor": 0.82}])
    assert "Factors" not in printed(study)  # of epochs whose front was not timed
    study = two_epochs(
        structure, updates=[update | {"latency_factor": 0.82, "latency_errors": [0.1, 0.2]}]
    )
    assert "savings, from runs of each epoch's front: 0.82." in printed(study)
    assert "finalists" not in printed(study)
    study = finished(structure, HITS)
    assert study.results is not None
    for row in study.results["front"]:
        row["speedup_measured"] = 0.9 * row["speedup_predicted"]
    document = study_document(study)
    error = document["latency_table"]["finalists_error"]
    assert error == pytest.approx(0.1)
    assert f"speed-up of the finalists is off by {error:.1%}." in printed(study)


def test_the_notes_describe_the_timed_workload(structure: ModelStructure) -> None:
    text = printed(facts(structure, calibration=CALIBRATION))
    assert "8 prompts of 640 tokens and 16 new tokens, in bfloat16 on a card." in text
    assert "latency of 2 random policies is off by 3.0% (mean)." in text
    assert "was timed" not in text  # how often is not known of older tables
    assert "launch" not in text
    latency = CALIBRATION["latency"]
    for rounds, words in ((1, "1 time."), (6, "6 times.")):
        timed = CALIBRATION | {"latency": latency | {"rounds": rounds}}
        again = printed(facts(structure, calibration=timed))
        assert f"Each width was timed {words}" in again
    assert "Factors" not in text
    assert "an earlier study" not in text
    latency = CALIBRATION["latency"] | {"launched": ["vision"]}
    config = CONFIG | {"latency": {"table": "tables.json"}}
    study = facts(structure, calibration=CALIBRATION | {"latency": latency}, config=config)
    text = printed(study)
    assert "It includes the time to launch kernels: vision." in text
    assert "comes from tables.json: an earlier study" in text
