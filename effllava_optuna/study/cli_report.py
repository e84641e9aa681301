"""The verbs that read what a study has found: ``status``, ``report``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from effllava_optuna.study.screen import console
from effllava_optuna.study.target import Target, targeted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study
    from rich.console import RenderableType


@click.command()
@targeted
@click.option("--json", "as_json", is_flag=True, help="Print the document as JSON.")
def status(target: Target, *, as_json: bool) -> None:
    """Say where a study stands.

    \b
    Example:
      python -m effllava_optuna.study status studies/quickstart.toml --json
    """
    found = document_of(target.study())
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    from effllava_optuna.report import summary

    console().print(summary(found))


@click.command()
@targeted
@click.option("--json", "as_json", is_flag=True, help="Print the document as JSON.")
def report(target: Target, *, as_json: bool) -> None:
    """Compare the dense model, the uniform baselines, the front and the chosen policy.

    \b
    Example:
      python -m effllava_optuna.study report studies/quickstart.toml
    """
    found = document_of(target.study())
    if as_json:
        click.echo(json.dumps(found, indent=2))
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
