"""Which finalist each rule would have chosen: proxy quality, smoothed quality, validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllava_optuna.report.paired_differences import paired_difference
from effllava_optuna.report.text_table import (
    TableRow,
    TextTable,
    format_accuracy,
    format_interval,
    format_number,
    measure_of_split,
    split_heading,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SPLITS = ("validation", "test")
_RULES = {
    "proxy": ("quality", "quality on the proxy"),
    "smoothed": ("quality_smoothed", "smoothed quality on the proxy"),
    "validation": ("accuracy_validation", "{measure} on validation"),
}  # name: key of the result row, description


def choices_by_rule(
    document: Mapping[str, Any], scores: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Find the finalist that each rule would have chosen.

    Args:
        document: The document of a finished study, see `effllava_optuna.report.study_document`.
        scores: ``groups`` of the samples of test, and ``hits`` by policy.

    Returns:
        For each ``rule``: the ``trial`` that it chooses, its ``value`` under the rule, its
        accuracies on validation and test with their intervals, and the paired ``difference`` on
        test to the trial that was chosen, see `paired_difference`; None if it is the same trial.
        A rule is left out if a finalist has no value.
    """
    chosen, rows = document["chosen"], document["front"]
    choices = []
    for rule, (key, _) in _RULES.items():
        if any(row.get(key) is None for row in rows):
            continue
        # The rule of validation is the choice itself, whose ties the selection has decided.
        row = chosen if rule == "validation" else max(rows, key=lambda row: row[key])
        same = row["trial"] == chosen["trial"]
        accuracies = {
            name: row[name]
            for split in _SPLITS
            for name in (f"accuracy_{split}", f"accuracy_{split}_interval")
        }
        difference = None
        if not same:
            difference = paired_difference(scores, str(row["trial"]), str(chosen["trial"]))
        choices.append(
            {"rule": rule, "trial": row["trial"], "value": row[key]}
            | accuracies
            | {"difference": difference}
        )
    return choices


def choice_table(document: Mapping[str, Any]) -> TextTable | None:
    """Compare the finalists that the rules would have chosen.

    Returns:
        The table; None before the end of the study, and if all rules choose the same policy,
        which `agreement_notes` states.
    """
    if _is_unanimous(document["choices"]):
        return None
    rows = []
    measure = measure_of_split(document, "validation")
    for choice in document["choices"]:
        decided = choice["rule"] == "validation"
        cells = (
            _RULES[choice["rule"]][1].format(measure=measure),
            f"trial {choice['trial']}",
            format_number(choice["value"], ".4f"),
            *(format_accuracy(choice, split) for split in _SPLITS),
            "the choice" if decided else _difference_cell(choice["difference"]),
        )
        rows.append(TableRow(cells, emphasized=decided))
    headings = (split_heading(document, split) for split in _SPLITS)
    columns = ("chosen by the best", "policy", "value", *headings, "test, minus\nthe choice")
    return TextTable(
        columns, rows, title="Choice among the finalists", notes=_notes(document), left_columns=2
    )


def agreement_notes(document: Mapping[str, Any]) -> list[str]:
    """Return a sentence if all rules choose the same finalist; else nothing."""
    choices = document["choices"]
    if len(document["front"]) < 2 or not choices or not _is_unanimous(choices):
        return []
    measure = measure_of_split(document, "validation")
    *rules, last = (
        f"by {_RULES[choice['rule']][1].format(measure=measure)}" for choice in choices
    )
    listed = f"{', '.join(rules)} and {last}" if rules else last
    trial, count = choices[0]["trial"], len(document["front"])
    return [f"Trial {trial} is the best of the {count} finalists {listed}."]


def _is_unanimous(choices: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether no rule chooses another finalist than the others, or there is no rule."""
    return len({choice["trial"] for choice in choices}) <= 1


def _difference_cell(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "same policy"
    interval = format_interval(difference["interval"], "+.3f", separator=" ")
    return f"{difference['difference']:+.3f}\n{interval}"


def _notes(document: Mapping[str, Any]) -> list[str]:
    notes = [
        f"Each rule chooses among the same {len(document['front'])} finalists. The differences "
        "are paired, with 95 % intervals; test had no influence on any of the choices."
    ]
    if any(choice["rule"] == "smoothed" for choice in document["choices"]):
        notes.append(
            "Smoothed quality: the mean of a Gaussian process over the log width ratios, fitted "
            "to the trials with the weight state of the finalist."
        )
    return notes
