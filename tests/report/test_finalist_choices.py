"""The finalists that other rules would have chosen, beside the choice by validation."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from effllava_optuna.report import choice_table, policy_table, study_document
from tests.report.study_samples import (
    CALIBRATION,
    facts,
    finished,
    record,
    text_of,
    width_of,
)

if TYPE_CHECKING:
    from effllava_optuna.policy import ModelStructure
    from effllava_optuna.report import StudyFacts

HITS = {"dense": [1] * 40, "4": [1] * 30 + [0] * 10, "5": [1] * 20 + [0] * 20, "6": [1] * 40}


def with_rows(study: StudyFacts, **columns: list[Any]) -> StudyFacts:
    """Return a finished study with other values in the rows of its front, by name of the value."""
    results = dict(study.results or {})
    for index, row in enumerate(results["front"]):
        row |= {name: values[index] for name, values in columns.items()}
    return dataclasses.replace(study, results=results)


def choices_of(study: StudyFacts) -> dict[str, Any]:
    return {choice["rule"]: choice for choice in study_document(study)["choices"]}


def test_each_rule_chooses_by_its_own_value(structure: ModelStructure) -> None:
    study = with_rows(
        finished(structure, HITS), quality=[0.5, 0.7, 0.6], quality_smoothed=[0.5, 0.6, 0.65]
    )
    choices = choices_of(study)
    assert {rule: (choice["trial"], choice["value"]) for rule, choice in choices.items()} == {
        "proxy": (5, 0.7), "smoothed": (6, 0.65), "validation": (4, 0.75),
    }  # fmt: skip
    assert choices["proxy"]["accuracy_test"] == 0.5
    assert choices["smoothed"]["accuracy_validation"] == 1.0


def test_the_difference_to_the_choice_is_paired_on_test(structure: ModelStructure) -> None:
    study = with_rows(
        finished(structure, HITS), quality=[0.5, 0.7, 0.6], quality_smoothed=[0.5, 0.6, 0.65]
    )
    choices = choices_of(study)
    assert choices["validation"]["difference"] is None
    assert choices["proxy"]["difference"]["difference"] == -0.25
    low, high = choices["smoothed"]["difference"]["interval"]
    assert 0.1 < low < 0.25 < high < 0.4


def test_the_choice_is_that_of_the_study_also_among_equals(structure: ModelStructure) -> None:
    hits = {"dense": [1] * 4, "4": [1, 0, 1, 0], "5": [1, 0, 1, 0]}
    study = finished(structure, hits)
    results = dict(study.results or {})
    results["chosen"] = results["front"][1]
    assert choices_of(dataclasses.replace(study, results=results))["validation"]["trial"] == 5


def test_a_study_without_smoothed_qualities_is_compared_by_the_other_rules(
    structure: ModelStructure,
) -> None:
    study = with_rows(finished(structure, HITS), quality=[0.5, 0.7, 0.6])
    assert set(choices_of(study)) == {"proxy", "validation"}
    for row in (study.results or {})["front"]:
        del row["quality_smoothed"]  # as older versions store rows
    assert set(choices_of(study)) == {"proxy", "validation"}
    table = choice_table(study_document(study))
    assert table is not None
    assert "Gaussian" not in text_of(table)


def test_before_the_end_there_is_no_choice(structure: ModelStructure) -> None:
    study = facts(structure, record(structure, 0, 0.5, 20.0), calibration=CALIBRATION)
    document = study_document(study)
    assert document["choices"] == []
    assert choice_table(document) is None


def test_the_table_marks_the_choice_and_shows_the_differences(structure: ModelStructure) -> None:
    study = with_rows(
        finished(structure, HITS), quality=[0.5, 0.7, 0.6], quality_smoothed=[0.9, 0.6, 0.65]
    )
    table = choice_table(study_document(study))
    assert table is not None
    proxy, smoothed, validation = table.rows
    assert validation.cells[0] == "accuracy on validation"
    assert proxy.cells[:3] == ("quality on the proxy", "trial 5", "0.7000")
    assert proxy.cells[-1].startswith("-0.250\n[-0.")
    assert (smoothed.cells[-1], validation.cells[-1]) == ("same policy", "the choice")
    assert width_of(table) <= 97  # with trials of four digits, 100
    assert [row.emphasized for row in table.rows] == [False, False, True]
    assert "the same 3 finalists" in text_of(table)


def test_rules_that_agree_are_one_sentence_below_the_policies(structure: ModelStructure) -> None:
    study = with_rows(
        finished(structure, HITS), quality=[0.9, 0.7, 0.6], quality_smoothed=[0.9, 0.6, 0.65]
    )
    document = study_document(study)
    assert choice_table(document) is None
    sentence = (
        "Trial 4 is the best of the 3 finalists by quality on the proxy, by smoothed quality on "
        "the proxy and by accuracy on validation."
    )
    assert sentence in policy_table(document).notes
    disagreeing = study_document(with_rows(study, quality=[0.5, 0.7, 0.6]))
    assert "finalists by" not in text_of(policy_table(disagreeing))
    alone = finished(structure, {"dense": HITS["dense"], "4": HITS["4"]})
    assert "finalists by" not in text_of(policy_table(study_document(alone)))


@pytest.mark.parametrize("value", [None, 0.1])
def test_a_rule_needs_a_value_of_every_finalist(
    structure: ModelStructure, value: float | None
) -> None:
    study = with_rows(finished(structure, HITS), quality_smoothed=[0.5, value, 0.65])
    assert ("smoothed" in choices_of(study)) == (value is not None)
