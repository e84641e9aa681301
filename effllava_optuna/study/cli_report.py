"""The verbs that read what a study has found: ``status``, ``report``, ``pick``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from effllava_optuna.errors import SpecError, StudyError
from effllava_optuna.files import write_atomically, write_errors_as
from effllava_optuna.study.screen import console
from effllava_optuna.study.target import (
    Format,
    Target,
    print_json,
    several_targeted,
    targeted,
    with_format,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna import Study
    from rich.console import RenderableType

    from effllava_optuna.report import StudyFacts


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
        print_json(found)
        return
    from effllava_optuna.report import summary

    console().print(summary(found))


@click.command()
@several_targeted
@click.option(
    "--compare", is_flag=True, help="Put several studies beside each other: seeds, samplers, eta."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page; beside the study file or database if not given.",
)
@with_format
def report(targets: Sequence[Target], *, compare: bool, out: Path | None, form: Format) -> None:
    """Compare the dense model, the uniform baselines, the front and the chosen policy.

    The table is printed, and all that is known goes on one HTML page that needs no network. It is
    read from the database alone, at any time. With -f json, a page is written only if --out says
    where.

    \b
    Example:
      python -m effllava_optuna.study report studies/quickstart.toml
      python -m effllava_optuna.study report --compare a.toml b.toml --out seeds.html
    """
    if compare:
        _compare(targets, out, form)
        return
    if len(targets) > 1:
        raise SpecError(f"{len(targets)} studies are given.", hint="Add --compare, or give one.")
    (target,) = targets
    from effllava_optuna.report import document
    from effllava_optuna.study.facts import facts_of

    facts = facts_of(target.study())
    found = document(facts)
    if form == "table":
        console().print(*tables_of(found))
        out = out or _beside(target, ".html")
    else:
        print_json(found)
    if out is not None:
        _write(out, _page(facts, found, target), told=form == "table")


@click.command()
@targeted
@click.option("--latency-ms", type=click.FloatRange(0, min_open=True), help="At most so many ms.")
@click.option("--speedup", type=click.FloatRange(0, min_open=True), help="At least so much.")
@click.option(
    "--accuracy-drop",
    type=click.FloatRange(0, 1),
    help="At most so much less accurate than the dense model; the fastest of these is picked.",
)
@click.option(
    "--params",
    type=click.FloatRange(0, 1, min_open=True),
    help="At most this share of the dense model's parameters.",
)
@with_format
def pick(target: Target, *, form: Format, **limits: float | None) -> None:
    """Pick a policy from the front by a rule, and say how sure that is.

    Of the finalists that keep to all that is asked, the most accurate one; with --accuracy-drop
    the fastest one. By validation; in a study that is not over, by cross-fitted scores on the
    proxy. What test says is shown, and plays no part. Nothing is changed or written.

    \b
    Example:
      python -m effllava_optuna.study pick studies/quickstart.toml --speedup 1.5
    """
    from effllava_optuna.report import Rule, picked
    from effllava_optuna.report import pick as pick_from
    from effllava_optuna.study.facts import facts_of

    for name, value in limits.items():
        if value is not None and math.isnan(value):
            raise SpecError(f"--{name.replace('_', '-')} is no number.", hint="Give a number.")
    found = pick_from(facts_of(target.study()), Rule(**limits))
    if form != "table":
        print_json(found)
        return
    console().print(picked(found))
    console().print(
        f"\npython -m effllava_optuna.study export {target.again} "
        f"--trial {found['picked']['trial']} --out pruned",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


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


def _compare(targets: Sequence[Target], out: Path | None, form: Format) -> None:
    from effllava_optuna.report.compare import compare, comparison, comparison_page

    if len(targets) < 2:
        raise SpecError("There is nothing to compare with.", hint="Give two studies or more.")
    documents = [document_of(target.study()) for target in targets]
    found = compare(documents)
    if form == "table":
        console().print(comparison(found))
        out = out or _beside(targets[0], ".compared.html")
    else:
        print_json(found)
    if out is not None:
        _write(out, comparison_page(found, documents), told=form == "table")


def _page(facts: StudyFacts, found: Mapping[str, Any], target: Target) -> str:
    from effllava_optuna.report.figures import figures
    from effllava_optuna.report.page import page

    return page(found, figures(facts, found), target.again)


def _beside(target: Target, ending: str) -> Path:
    """Give where the page of a study goes: beside its file, else its database, else here."""
    if target.file is not None:
        return target.file.with_suffix(ending)
    from effllava_optuna.study.storage import file_of

    file = file_of(target.url)
    name = f"{target.name.replace('/', '-')}{ending}"
    return Path(name) if file is None else file.with_name(name)


def _write(place: Path, text: str, *, told: bool) -> None:
    """Write a page as a whole.

    Raises:
        StudyError: It cannot be written there.
    """
    with write_errors_as(StudyError, place, hint="Give another --out."):
        write_atomically(place, text)
    if told:
        console().print(f"\npage: {place}", highlight=False, soft_wrap=True)
