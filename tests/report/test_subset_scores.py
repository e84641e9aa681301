"""Accuracies by subset, and the tables that show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllava_optuna.report import (
    accuracy_by_subset,
    evaluation_table,
    study_document,
    subset_table,
)
from tests.report.study_samples import finished, row, text_of

if TYPE_CHECKING:
    from effllava_optuna.policy import ModelStructure


def test_a_sample_counts_in_each_of_its_subsets() -> None:
    accuracies = accuracy_by_subset([1.0, 0.0, 1.0], ["a", "b", "c"], [("x", "y"), ("x",), ()])
    assert {name: (one["samples"], one["accuracy"]) for name, one in accuracies.items()} == {
        "x": (2, 0.5),
        "y": (1, 1.0),
    }


def test_policies_are_compared_on_each_subset(structure: ModelStructure) -> None:
    hits = {"dense": [1], "7": [0]}
    assert subset_table(study_document(finished(structure, hits))) is None
    study = finished(structure, hits)
    subset: dict[str, Any] = {"x": {"samples": 1200, "accuracy": 0.5, "interval": [0.4, 0.6]}}
    results = dict.fromkeys(("dense", "chosen"), row(structure, [1], 9.0, subsets_test=subset))
    table = subset_table(study_document(study) | results)
    assert table is not None
    assert table.columns == ("subset", "samples", "dense", "chosen")
    assert [tuple(row.cells) for row in table.rows] == [
        ("x", "1,200", "0.500 [0.400 0.600]", "0.500 [0.400 0.600]")
    ]


def test_an_evaluation_warns_of_samples_that_the_search_has_seen() -> None:
    document: dict[str, Any] = {
        "model": "m", "task": "t", "split": "full", "rule": "likeliest option",
        "all": {"samples": 3, "accuracy": 0.5, "interval": [0.25, 0.75]}, "subsets": {},
        "constant": {"text": "no", "accuracy": 0.4}, "unlabelled": 2, "seen": 1, "answers": "a",
        "perplexity": {"value": 31.4159, "tokens": 1200, "text": "english.txt"},
    }  # fmt: skip
    text = text_of(evaluation_table(document))
    assert "all 3 0.5000 0.2500 to 0.7500" in text
    assert "2 samples have no right answer" in text
    assert "The constant answer 'no' scores 0.4000." in text
    assert "1 of these samples are about a picture of the study's proxy set" in text
    assert "Perplexity of english.txt: 31.42 over 1,200 tokens." in text
