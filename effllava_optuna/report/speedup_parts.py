"""What a speed-up is made of: image tokens that are not read, and widths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllava_optuna.policy import IMAGE_TOKENS
from effllava_optuna.report.policy_table import is_chosen, labelled_rows
from effllava_optuna.report.text_table import TableRow, TextTable, format_number

if TYPE_CHECKING:
    from collections.abc import Mapping

_PARTS = ("image tokens", "widths")


def speedup_table(document: Mapping[str, Any]) -> TextTable | None:
    """Build the table of what image tokens and widths contribute to each speed-up, by phase.

    Returns:
        None if all policies read all image tokens, or nothing was measured yet.
    """
    rows = []
    phases: list[str] = []
    for label, row in labelled_rows(document):
        parts = row.get("speedup_parts")  # older studies do not have it
        if not parts or IMAGE_TOKENS.id not in row["policy"]:
            continue
        phases = list(parts)
        factors = [format_number(factor, ".2f") for phase in phases for factor in parts[phase]]
        cells = (
            label,
            f"{row['policy'][IMAGE_TOKENS.id]} %",
            *factors,
            format_number(row["speedup_predicted"], ".2f"),
            format_number(row["speedup_measured"], ".2f"),
        )
        rows.append(TableRow(cells, emphasized=is_chosen(document, row)))
    if not rows:
        return None
    notes = [
        "Each phase is as many times as fast as the product of its two factors, by the latency "
        "tables of each number of image tokens; speed-up: of the whole workload, with the vision "
        "tower."
    ]
    headings = (f"{phase},\n{part}" for phase in phases for part in _PARTS)
    columns = ("policy", "image\ntokens", *headings, "speed-up", "speed-up\nmeasured")
    return TextTable(columns, rows, title="What the speed-up is made of", notes=notes)
