"""Accuracies with intervals, over all samples and by subset, and the tables that show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllava_optuna.policy import bootstrap_interval
from effllava_optuna.report.text_table import TableRow, TextTable, format_interval, format_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def accuracy_with_interval(scores: Sequence[float], groups: Sequence[str]) -> dict[str, Any]:
    """Compute the mean of ``scores`` and its 95 % interval.

    Args:
        scores: At least one score in [0, 1].
        groups: The group of each sample; samples of one group share a picture.
    """
    low, high = bootstrap_interval(scores, groups)
    return {
        "samples": len(scores),
        "accuracy": round(sum(scores) / len(scores), 6),
        "interval": [round(low, 6), round(high, 6)],
    }


def accuracy_by_subset(
    scores: Sequence[float], groups: Sequence[str], subsets: Sequence[Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Compute `accuracy_with_interval` of each subset.

    Args:
        scores: Scores in [0, 1].
        groups: The group of each sample; samples of one group share a picture.
        subsets: The names of the subsets that each sample belongs to, which may be none.
    """
    accuracies = {}
    for name in sorted({name for names in subsets for name in names}):
        members = [index for index, names in enumerate(subsets) if name in names]
        accuracies[name] = accuracy_with_interval(
            [scores[index] for index in members], [groups[index] for index in members]
        )
    return accuracies


def subset_table(document: Mapping[str, Any]) -> TextTable | None:
    """Compare the dense model, the best uniform-by-kind policy and the choice by subset of test.

    Returns:
        The table; None if the samples belong to no subset, or test was not opened yet.
    """
    named = [
        (label, document[key]["subsets_test"])
        for label, key in (
            ("dense", "dense"),
            ("uniform by kind", "uniform_by_kind"),
            ("chosen", "chosen"),
        )
        if document[key] is not None and document[key]["subsets_test"]
    ]
    if not named:
        return None
    rows = []
    for name, first in named[0][1].items():
        cells = [name, f"{first['samples']:,}"]
        for _, subsets in named:
            interval = format_interval(subsets[name]["interval"], separator=" ")
            cells.append(f"{subsets[name]['accuracy']:.3f} {interval}")
        rows.append(TableRow(cells))
    columns = ("subset", "samples", *(label for label, _ in named))
    return TextTable(columns, rows, title="Test, by subset")


def evaluation_table(document: Mapping[str, Any]) -> TextTable:
    """Build the table of an evaluation: accuracy over all samples and by subset.

    Args:
        document: The document of the evaluation, see `effllava_optuna.evaluation`.
    """
    rows = []
    for name, result in [("all", document["all"]), *document["subsets"].items()]:
        if result is not None:
            low, high = result["interval"]
            accuracy = f"{result['accuracy']:.4f}"
            cells = (name, f"{result['samples']:,}", accuracy, f"{low:.4f} to {high:.4f}")
            rows.append(TableRow(cells))
    return TextTable(
        ("", "samples", document["rule"], "95 % interval"),
        rows,
        title=f"{document['model']} on {document['task']}, {document['split']}",
        notes=_evaluation_notes(document),
    )


def _evaluation_notes(document: Mapping[str, Any]) -> list[str]:
    notes = [f"answers: {document['answers']}"]
    if document["unlabelled"]:
        notes.append(f"{document['unlabelled']:,} samples have no right answer to compare with.")
    constant = document["constant"]
    if constant:
        notes.append(
            f"The constant answer {constant['text']!r} scores {constant['accuracy']:.4f}."
        )
    if document["seen"]:
        notes.append(
            f"{document['seen']:,} of these samples are about a picture of the study's proxy set, "
            "or have the question of a proxy sample and no picture: the accuracy of a model that "
            "was searched on the proxy set may be too high."
        )
    measured = document["perplexity"]
    if measured is not None:
        notes.append(
            f"Perplexity of {measured['text']}: {measured['value']:.4g} over "
            f"{measured['tokens']:,} tokens."
        )
    if document.get("judged"):
        notes += _judge_notes(document["judged"])
    return notes


def _judge_notes(judged: Mapping[str, Any]) -> list[str]:
    """Describe the scores of a judge, the judge, and the replies that were not counted."""
    score = "no score" if judged["score"] is None else f"{judged['score']:.1f}"
    parts = ", ".join(
        f"{name} {format_number(value, '.1f')}" for name, value in judged["by_group"].items()
    )
    total = judged["counted"] + judged["failures"]
    judge = f"{judged['judge']} (answered by {', '.join(judged['answered_by']) or 'unnamed'})"
    return [
        f"{judged['benchmark']}: {score}; {parts}",
        f"judged by {judge}, {judged['wording']} wording; {judged['counted']} of {total} replies "
        "could be read, the others are not in the scores.",
    ]
