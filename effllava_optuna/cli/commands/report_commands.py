"""The commands that read the results of a study: ``status``, ``report``, ``pick``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from effllava_optuna.cli import PROGRAM
from effllava_optuna.cli.options import (
    OutputFormat,
    UserPath,
    format_option,
    several_study_options,
    study_options,
)
from effllava_optuna.cli.output import console, print_json, print_line
from effllava_optuna.errors import ConfigError, StudyError
from effllava_optuna.files import why_unwritable, write_atomically, write_errors_as
from effllava_optuna.storage.location import StudyLocation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study


@click.command()
@study_options()
@format_option
def status(location: StudyLocation, *, output_format: OutputFormat) -> None:
    """Show the progress of a study.

    \b
    Example:
      effllava-optuna status studies/quickstart.toml -f json
    """
    study = location.open()
    document = document_of(study)
    if output_format == "json":
        print_json(document)
        return
    from effllava_optuna.cli.rendering import render_summary

    console().print(render_summary(document, location.arguments))
    if document["chosen"] is not None:
        print_line(f"Results: {PROGRAM} report {location.arguments}")
        return
    trials, lost_trials, attempts, lost_attempts = _running_and_lost(study)
    if lost_trials:
        print_line(f"Of the running trials, {lost_trials} of {trials} belong to an ended process.")
    running, lost = trials + attempts, lost_trials + lost_attempts
    if lost == running:  # between two trials, a process at work leaves no trace
        idle = "No process works on it:" if running else "If no process works on it,"
        print_line(f"{idle} continue with {PROGRAM} resume {location.arguments}")


def _running_and_lost(study: Study) -> tuple[int, int, int, int]:
    """Return how many trials run, of how many the process has ended, and so for attempts."""
    from optuna.trial import TrialState

    from effllava_optuna.samplers import lost_trials
    from effllava_optuna.storage.control_study import dead_attempts, load_control_study

    states, control = (TrialState.RUNNING,), load_control_study(study)
    trials = study.get_trials(deepcopy=False, states=states)
    counts = len(trials), len(lost_trials(study, trials))
    if control is None:
        return (*counts, 0, 0)
    attempts = control.get_trials(deepcopy=False, states=states)
    return (*counts, len(attempts), len(dead_attempts(control)))


@click.command()
@several_study_options
@click.option(
    "--compare",
    is_flag=True,
    help="Compare several studies, such as those with different seeds, samplers or eta.",
)
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    help="File of the HTML page; by default beside the study file or the database.",
)
@format_option
def report(
    locations: Sequence[StudyLocation],
    *,
    compare: bool,
    out: Path | None,
    output_format: OutputFormat,
) -> None:
    """Report the results of a study, or compare studies.

    Prints a table of the dense model, uniform policies, the Pareto front and the chosen policy,
    and writes an HTML page with all results, which needs no network. A report reads only the
    database, and is available at any time. With -f json, the page is written only with --out.

    \b
    Example:
      effllava-optuna report studies/quickstart.toml
      effllava-optuna report --compare a.toml b.toml --out seeds.html
    """
    if compare:
        _compare(locations, out, output_format)
        return
    if len(locations) > 1:
        raise ConfigError(
            f"{len(locations)} studies are given.", hint="Add --compare, or use one study."
        )
    from effllava_optuna.cli.rendering import render_report
    from effllava_optuna.report import study_document
    from effllava_optuna.report.figures.study_figures import study_figures
    from effllava_optuna.report.page import study_page
    from effllava_optuna.storage.study_facts import read_study_facts

    (location,) = locations
    facts = read_study_facts(location.open())
    document = study_document(facts)
    show_table = output_format == "table"
    if show_table:
        console().print(*render_report(document, location.arguments))
        out = out or _default_page(location, ".html")
    else:
        print_json(document)
    if out is not None:
        html = study_page(document, study_figures(facts, document), location.arguments)
        _write_page(out, html, announce=show_table)


@click.command()
@study_options()
@click.option(
    "--latency-ms",
    type=click.FloatRange(0, min_open=True),
    help="Maximum latency of the workload of the study, in ms.",
)
@click.option(
    "--speedup",
    type=click.FloatRange(0, min_open=True),
    help="Minimum speed-up relative to the dense model.",
)
@click.option(
    "--accuracy-drop",
    type=click.FloatRange(0, 1),
    help="Maximum loss of accuracy relative to the dense model; picks the fastest such policy.",
)
@click.option(
    "--params",
    type=click.FloatRange(0, 1, min_open=True),
    help="Maximum share of the dense model's parameters.",
)
@click.option(
    "--whole-front",
    is_flag=True,
    help="Pick among all policies of the front, by accuracy on the proxy and predicted latency.",
)
@format_option
def pick(
    location: StudyLocation,
    *,
    whole_front: bool,
    output_format: OutputFormat,
    **limits: float | None,
) -> None:
    """Pick a policy by limits.

    Picks the most accurate finalist within all limits (with --accuracy-drop the fastest one), and
    shows how certain the choice is. Among equally accurate ones the quality on the proxy decides.
    Accuracy is that on validation and latency is measured; accuracy on test is only shown. The
    other policies of the front, which were not measured on validation, are listed; they can be
    picked with --whole-front, and in a study that is not finished. Nothing is written.

    \b
    Example:
      effllava-optuna pick studies/quickstart.toml --speedup 1.5
      effllava-optuna pick studies/quickstart.toml --speedup 1.9 --whole-front
    """
    from effllava_optuna.cli.rendering import render_tables
    from effllava_optuna.report import PickRule, pick_policy, pick_table
    from effllava_optuna.storage.study_facts import read_study_facts

    for name, value in limits.items():
        if value is not None and math.isnan(value):
            raise ConfigError(f"--{name.replace('_', '-')} is not a number.", hint="Use a number.")
    facts = read_study_facts(location.open())
    document = pick_policy(facts, PickRule(**limits), "front" if whole_front else "finalists")
    if output_format == "json":
        print_json(document)
        return
    console().print(render_tables(pick_table(document)))
    console().print(
        f"\n{PROGRAM} export {location.arguments} --trial {document['picked']['trial']} "
        "--out pruned",
        highlight=False,
        soft_wrap=True,
    )


def document_of(study: Study) -> dict[str, Any]:
    """Return the results of a study as a document for programs."""
    from effllava_optuna.report import study_document
    from effllava_optuna.storage.study_facts import read_study_facts

    return study_document(read_study_facts(study))


def _compare(
    locations: Sequence[StudyLocation], out: Path | None, output_format: OutputFormat
) -> None:
    from effllava_optuna.cli.rendering import render_tables
    from effllava_optuna.report.page import comparison_page
    from effllava_optuna.report.study_comparison import compare_studies, comparison_tables

    if len(locations) < 2:
        raise ConfigError(
            "--compare needs at least two studies.", hint="Add a study file or a --study-name."
        )
    documents = [document_of(location.open()) for location in locations]
    result = compare_studies(documents)
    show_table = output_format == "table"
    if show_table:
        console().print(render_tables(*comparison_tables(result)))
        out = out or _default_page(locations[0], ".compared.html")
    else:
        print_json(result)
    if out is not None:
        _write_page(out, comparison_page(result, documents), announce=show_table)


def _default_page(location: StudyLocation, suffix: str) -> Path | None:
    """Return the path of a page: beside the study file, the database, or in this directory.

    None, with a warning, in a read-only place: the results can be looked at all the same.
    """
    path = _path_beside(location, suffix)
    if not why_unwritable(path):
        return path
    print_line(f"No page is written: {path} is in a read-only place. Use --out.", stderr=True)
    return None


def _path_beside(location: StudyLocation, suffix: str) -> Path:
    if location.file is not None:
        return location.file.with_suffix(suffix)
    from effllava_optuna.storage.urls import file_of

    database = file_of(location.url)
    name = f"{location.name.replace('/', '-')}{suffix}"
    return Path(name) if database is None else database.with_name(name)


def _write_page(path: Path, html: str, *, announce: bool) -> None:
    """Write a page atomically.

    Raises:
        StudyError: It cannot be written.
    """
    with write_errors_as(StudyError, path, hint="Use another --out."):
        write_atomically(path, html)
    if announce:
        console().print(f"\npage: {path}", highlight=False, soft_wrap=True)
