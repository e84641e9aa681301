"""The verbs that read what a study has found: ``status``, ``report``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from effllava_optuna.study.screen import console
from effllava_optuna.study.target import Format, Target, targeted, with_format, written_as

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study
    from rich.console import RenderableType


@click.command()
@targeted
@with_format
def status(target: Target, *, form: Format) -> None:
    """Say where a study stands.

    \b
    Example:
      python -m effllava_optuna.study status studies/quickstart.toml -f json
    """
    found = document_of(target.study())
    if form != "table":
        click.echo(written_as(form, found))
        return
    from effllava_optuna.report import summary

    console().print(summary(found))


@click.command()
@targeted
@with_format
def report(target: Target, *, form: Format) -> None:
    """Compare the dense model, the uniform baselines, the front and the chosen policy.

    \b
    Example:
      python -m effllava_optuna.study report studies/quickstart.toml
    """
    found = document_of(target.study())
    if form != "table":
        click.echo(written_as(form, found))
        return
    console().print(*tables_of(found))


def document_of(study: Study) -> dict[str, Any]:
    """Read what a study has found, as the document that programs read."""
    from effllava_optuna.report import document
    from effllava_optuna.study.facts import facts_of

    return document(facts_of(study))


def tables_of(found: Mapping[str, Any]) -> list[RenderableType]:
    """Give what a report prints."""
    from effllava_optuna.report import by_subset, policies, summary

    parts = by_subset(found)
    return [summary(found), "", policies(found), *(() if parts is None else ("", parts))]
