"""Tables on the terminal."""

from __future__ import annotations

import io

from rich.console import Console

from effllava_optuna.cli.rendering import render_tables
from effllava_optuna.report import TableRow, TextTable


def printed(*tables: TextTable) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render_tables(*tables))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def test_numbers_are_right_aligned_below_multi_line_headings() -> None:
    table = TextTable(
        ("policy", "speed-up\nmeasured"),
        [TableRow(("dense", "1.00")), TableRow(("trial 7", "12.00"), emphasized=True)],
        title="Policies",
        notes=["first note", "second note"],
    )
    assert printed(table) == (
        "Policies\n"
        "         speed-up\n"
        "policy   measured\n"
        "dense        1.00\n"
        "trial 7     12.00\n"
        "\n"
        "first note\n"
        "second note"
    )


def test_square_brackets_are_not_markup() -> None:
    table = TextTable(("[b]",), [TableRow(("[bold]name[/bold]",))], notes=["[red]note"])
    text = printed(table, table)
    assert text.count("[bold]name[/bold]") == 2
    assert text.count("[red]note") == 2
    assert text.count("[b]\n") == 2
