"""Render tables on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from effllava_optuna.report import TextTable
    from effllava_optuna.storage.integrity import CheckResult

_MAX_SPACED_COLUMNS = 8  # with more columns, the space between them is one character, not two
_COLOURS = {"ok": "green", "warning": "yellow", "fault": "red"}


def render_tables(*tables: TextTable) -> RenderableType:
    """Return tables with their titles and notes, an empty line between any two of them."""
    parts: list[RenderableType] = []
    for table in tables:
        if parts:
            parts.append("")
        if table.title:
            parts.append(Text(table.title, style="italic"))
        parts.append(_grid(table))
        if table.notes:
            # `Text` prevents that square brackets, as in intervals, are read as markup.
            parts.append(Text("\n" + "\n".join(table.notes)))
    return Group(*parts)


def _grid(table: TextTable) -> Table:
    grid = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        collapse_padding=len(table.columns) > _MAX_SPACED_COLUMNS,
    )
    for index, heading in enumerate(table.columns):
        grid.add_column(Text(heading), justify="left" if index < table.left_columns else "right")
    for row in table.rows:
        grid.add_row(*map(Text, row.cells), style="bold" if row.emphasized else None)
    return grid


def render_summary(document: Mapping[str, Any], study_arguments: str) -> Text:
    """Return what `status` prints.

    Args:
        document: See `effllava_optuna.report.study_document`.
        study_arguments: The study in a command.
    """
    from effllava_optuna.report import status_lines

    return Text("\n".join(status_lines(document, study_arguments)))


def render_report(document: Mapping[str, Any], study_arguments: str) -> list[RenderableType]:
    """Return what `report` prints: its conclusion, and the tables that its policies have.

    Args:
        document: See `effllava_optuna.report.study_document`.
        study_arguments: The study in a command.
    """
    from effllava_optuna.report import choice_table, policy_table, speedup_table, subset_table

    builders = (policy_table, speedup_table, choice_table, subset_table)
    shown = [table for table in (build(document) for build in builders) if table is not None]
    return [render_summary(document, study_arguments), "", render_tables(*shown)]


def render_checks(results: Sequence[CheckResult]) -> Table:
    """Return a table of the results of `doctor`, each with its cure."""
    table = Table(box=None, pad_edge=False)
    for heading in ("state", "check", "result"):
        table.add_column(heading, overflow="fold")
    for result in results:
        text = result.detail if not result.cure else f"{result.detail}\n-> {result.cure}"
        state = Text(result.state, style=_COLOURS[result.state])
        table.add_row(state, Text(result.check), Text(text))
    return table
