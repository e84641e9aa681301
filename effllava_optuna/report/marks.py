"""What some answers are worth: means with intervals, over all of them and by subset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from effllava_optuna.policy import bootstrap_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType


def mark(scores: Sequence[float], units: Sequence[str]) -> dict[str, Any]:
    """Give the mean of scores with its 95 % interval.

    Args:
        scores: In [0, 1], one at least.
        units: The independent unit of each.
    """
    low, high = bootstrap_interval(scores, units)
    return {
        "samples": len(scores),
        "accuracy": round(sum(scores) / len(scores), 6),
        "interval": [round(low, 6), round(high, 6)],
    }


def marks(
    scores: Sequence[float], units: Sequence[str], subsets: Sequence[Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Give the mark of each subset, by name.

    Args:
        scores: In [0, 1].
        units: The independent unit of each.
        subsets: The subsets that each belongs to; there may be several, or none.
    """
    found = {}
    for name in sorted({name for names in subsets for name in names}):
        mine = [place for place, names in enumerate(subsets) if name in names]
        found[name] = mark([scores[place] for place in mine], [units[place] for place in mine])
    return found


def evaluation(document: Mapping[str, Any]) -> RenderableType:
    """Show what an evaluation found."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("samples", justify="right")
    table.add_column(document["rule"], justify="right")
    table.add_column("95 % interval", justify="right")
    rows = [("all", document["all"]), *document["subsets"].items()]
    for name, found in rows:
        if found is not None:
            low, high = found["interval"]
            share = f"{found['accuracy']:.4f}"
            table.add_row(name, f"{found['samples']:,}", share, f"{low:.4f} to {high:.4f}")
    table.title = Text(f"{document['model']} on {document['task']}, {document['split']}")
    table.title_justify = "left"
    notes = [f"answers: {document['answers']}"]
    if document["unlabelled"]:
        notes.append(f"{document['unlabelled']:,} samples have no right answer to compare with.")
    if document["constant"]:
        said, share = document["constant"]["text"], document["constant"]["accuracy"]
        notes.append(f"Answering {said!r} always would score {share:.4f}.")
    if document["seen"]:
        notes.append(
            f"{document['seen']:,} of these samples are about a picture that the proxy of the "
            "study has, or ask its question without one: a model that was searched on it may do "
            "too well here."
        )
    if document.get("judged"):
        notes += _judged(document["judged"])
    table.caption = Text("\n".join(notes))
    table.caption_justify = "left"
    return table


def _judged(found: Mapping[str, Any]) -> list[str]:
    """Say what a judge found, and who it was."""
    score = "no score" if found["score"] is None else f"{found['score']:.1f}"
    parts = ", ".join(
        f"{name} {'-' if value is None else format(value, '.1f')}"
        for name, value in found["by_group"].items()
    )
    total = found["counted"] + found["failures"]
    who = f"{found['judge']} (answered by {', '.join(found['answered_by']) or 'unnamed'})"
    return [
        f"{found['benchmark']}: {score}; {parts}",
        f"judged by {who}, {found['wording']} wording; {found['counted']} of {total} replies "
        "could be read, the others are in no score.",
    ]


def subset_rows(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Compare the dense model, the best baseline and the choice on each subset of test.

    Returns:
        The columns beside the subset's name, and the lines; nothing if there are no subsets.
    """
    named = [
        (label, document[key]["subsets_test"])
        for label, key in (
            ("dense", "dense"),
            ("uniform, 2 numbers", "uniform2"),
            ("chosen", "chosen"),
        )
        if document[key] is not None and document[key].get("subsets_test")
    ]
    if not named:
        return [], []
    rows = []
    for subset, first in named[0][1].items():
        cells = [subset, f"{first['samples']:,}"]
        for _, subsets in named:
            found = subsets[subset]
            low, high = found["interval"]
            cells.append(f"{found['accuracy']:.3f} [{low:.3f} {high:.3f}]")
        rows.append(cells)
    return ["samples", *(label for label, _ in named)], rows


def by_subset(document: Mapping[str, Any]) -> RenderableType | None:
    """Show `subset_rows`; None if there are no subsets."""
    columns, rows = subset_rows(document)
    if not rows:
        return None
    table = Table(box=None, pad_edge=False, header_style="bold", title="test, by subset")
    table.title_justify = "left"
    table.add_column("")
    for label in columns:
        table.add_column(label, justify="right")
    for cells in rows:
        table.add_row(*cells)
    return table
