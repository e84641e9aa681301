"""The verb that looks for what is wrong: ``doctor``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from effllava_optuna.errors import EffllavaError, SpecError
from effllava_optuna.study.screen import console
from effllava_optuna.study.target import (
    Format,
    Target,
    print_json,
    quiet_optuna,
    with_format,
    with_target,
)

if TYPE_CHECKING:
    from rich.table import Table

    from effllava_optuna.study.integrity import Finding

_FAULT = 2
_COLOURS = {"ok": "green", "warning": "yellow", "fault": "red"}


@click.command()
@with_target(required=False)
@click.option(
    "--repair",
    is_flag=True,
    help="Fail trials of ended processes and remove what they left half written; no more.",
)
@with_format
def doctor(target: Target | None, *, repair: bool, form: Format) -> None:
    """Check this machine; with a study, its storage, trials and artifacts, too.

    The exit code is 2 if there is a fault, and 0 if there are warnings at most.

    \b
    Example:
      python -m effllava_optuna.study doctor studies/quickstart.toml
    """
    if repair and target is None:
        raise SpecError("--repair needs a study.", hint="Give a study file, or --storage URL.")
    quiet_optuna()
    from effllava_optuna.study import integrity
    from effllava_optuna.study.doctor import examine_machine

    findings = examine_machine(_place(target))
    done: list[str] = []
    if target is not None:
        stored = integrity.examine_storage(target)
        there = all(finding.state != "fault" for finding in stored)
        if there and not (target.file is not None and not target.is_there()):
            done = integrity.repair(target) if repair else []
            stored += integrity.examine_study(target)
        findings += stored
    if form == "table":
        console().print(_table(findings))
        for line in done:
            click.echo(f"repaired: {line}")
        if repair and not done:
            click.echo("There was nothing to repair.")
    else:
        document = {"findings": [asdict(finding) for finding in findings], "repaired": done}
        print_json(document)
    if any(finding.state == "fault" for finding in findings):
        sys.exit(_FAULT)


def _place(target: Target | None) -> Path:
    if target is None:
        return Path.cwd()
    if target.file is not None:
        return target.file.absolute().parent
    from effllava_optuna.study.storage import file_of

    try:
        file = file_of(target.url)
    except EffllavaError:
        file = None
    return Path.cwd() if file is None else file.absolute().parent


def _table(findings: list[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in ("state", "check", "found"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        told = finding.found if not finding.cure else f"{finding.found}\n-> {finding.cure}"
        state = Text(finding.state, style=_COLOURS[finding.state])
        table.add_row(state, Text(finding.check), Text(told))
    return table
