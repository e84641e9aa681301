"""The tables of ``compensation.py``."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from _fields import COMPENSATION, IMPORTANCE, TOKENS, WIDTH_RATIO
from _means import markdown, mean
from _sentences import joined, paragraph

from effllava_optuna.surgery import IMPORTANCES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Row = Mapping[str, Any]


FIELDS = (IMPORTANCE, COMPENSATION, TOKENS, WIDTH_RATIO)
WIDTH_RATIOS = (0.75, 0.5, 0.35)
COMPENSATIONS = ("none", "bias", "least-squares")
TOKEN_WEIGHTS = ("gradient", "all", "text")
QUESTIONS = 1000
# Combinations that depend on token weights; the others would only be repeated.
WEIGHTED = (
    ("wanda", "none"),
    ("flap", "bias"),
    ("taylor", "bias"),
    ("taylor", "least-squares"),
    ("obs", "none"),
    ("obs", "least-squares"),
)
SEQUENTIAL = "sequential"
IN_SEQUENCE = ("taylor", "obs")
# The defaults before this was measured.
REFERENCE = ("taylor", "least-squares", "gradient")


def accuracies_of(rows: Sequence[Row], *combination: object) -> dict[int, float]:
    """Return accuracies by draw of one combination at one width ratio."""
    return {
        row["draw"]: row["accuracy"]
        for row in rows
        if [row.get(field) for field in FIELDS] == [*combination]
    }


def differences(minuend: Mapping[int, float], subtrahend: Mapping[int, float]) -> dict[int, float]:
    """Return the differences of the draws that both have."""
    return {draw: minuend[draw] - subtrahend[draw] for draw in minuend if draw in subtrahend}


def cell(values: Mapping[int, float], sign: str = "") -> str:
    """Format mean and standard deviation over draws."""
    sample = [*values.values()]
    spread = f" ({np.std(sample, ddof=1):.3f})" if len(sample) > 1 else ""
    return f"{np.mean(sample):{sign}.3f}{spread}" if sample else "-"


def combinations_table(rows: Sequence[Row]) -> str:
    """Format every importance with every compensation."""
    reference = accuracies_of(rows, *REFERENCE, 0.5)
    lines = []
    for importance, compensation in product(IMPORTANCES, COMPENSATIONS):
        by_ratio = {
            ratio: accuracies_of(rows, importance, compensation, "gradient", ratio)
            for ratio in WIDTH_RATIOS
        }
        gain = cell(differences(by_ratio[0.5], reference), "+")
        is_reference = (importance, compensation) == REFERENCE[:2]
        cells = [*map(cell, by_ratio.values()), "-" if is_reference else gain]
        lines.append([importance, compensation, *cells])
    ratios = [f"width ratio {ratio}" for ratio in WIDTH_RATIOS]
    return markdown(
        ["importance", "compensation", *ratios, "minus taylor, least-squares at 0.5"], lines
    )


def tokens_table(rows: Sequence[Row]) -> str:
    """Format the combinations that depend on token weights."""
    lines = []
    for importance, compensation in WEIGHTED:
        by_tokens = {
            tokens: accuracies_of(rows, importance, compensation, tokens, 0.5)
            for tokens in TOKEN_WEIGHTS
        }
        gain = differences(by_tokens["gradient"], by_tokens["all"])
        lines.append([importance, compensation, *map(cell, by_tokens.values()), cell(gain, "+")])
    return markdown(["importance", "compensation", *TOKEN_WEIGHTS, "gradient minus all"], lines)


def sequence_table(rows: Sequence[Row]) -> str:
    """Format compensation in sequence, with its difference to the compensation tables."""
    lines = []
    for importance in IN_SEQUENCE:
        cells = []
        for ratio in WIDTH_RATIOS:
            tables, in_sequence = (
                accuracies_of(rows, importance, compensation, "gradient", ratio)
                for compensation in ("least-squares", SEQUENTIAL)
            )
            gain = cell(differences(in_sequence, tables), "+")
            cells.append(f"{cell(in_sequence)}, difference {gain}")
        lines.append([importance, *cells])
    return markdown(["importance", *(f"width ratio {ratio}" for ratio in WIDTH_RATIOS)], lines)


def summary(rows: Sequence[Row]) -> str:
    """Return the main figures."""
    sentences = []
    for compensation in ("least-squares", "none"):
        kept = [
            f"{importance} {mean(list(accuracies.values())).text()}"
            for importance in ("obs", "magnitude", "taylor")
            if (accuracies := accuracies_of(rows, importance, compensation, "gradient", 0.5))
        ]
        sentences.append(f"with compensation {compensation}, {joined(kept, ',')}")
    dense = mean([row["accuracy"] for row in rows if row[IMPORTANCE] == "dense"])
    return paragraph(f"""
        Test accuracy of uniform policies that keep half of all units, by importance:
        {"; ".join(sentences)}. Dense: {dense.text()}.""")


def section(rows: Sequence[Row], origin: Row) -> str:
    """Format the page of the benchmark."""
    dense = {row["draw"]: row["accuracy"] for row in rows if row[IMPORTANCE] == "dense"}
    return f"""{summary(rows)}

Generated by `python benchmarks/compensation.py`; do not edit. Figures:
[results](../results/compensation.jsonl).

Test accuracy of uniform policies of the embedded digits model on {QUESTIONS:,} questions about
digit images that neither training nor calibration has seen. Mean (standard deviation) over
{len(dense)} draws of 64 calibration samples and of the questions; differences are paired by draw.
Dense: {cell(dense)}. Attention has four groups, of which width ratio 0.35 leaves one. One small
model: this says nothing about larger ones.

Every importance with every compensation; tokens weighted by gradient in the compensation tables
and in wanda, flap and obs:

{combinations_table(rows)}

Token weights at width ratio 0.5:

{tokens_table(rows)}

Least squares in sequence, against the tables that serve every policy:

{sequence_table(rows)}

{origin["cpu"]}, threads: 1; torch {origin["torch"]}, transformers {origin["transformers"]};
{origin["date"]}.
"""
