"""The command that diagnoses machine and study: ``doctor``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from effllava_optuna.cli.error_handling import EXIT_ERROR
from effllava_optuna.cli.options import OutputFormat, format_option, study_options
from effllava_optuna.cli.output import console, print_json, print_line, quiet_optuna
from effllava_optuna.errors import ConfigError, EffllavaError
from effllava_optuna.storage.location import StudyLocation

if TYPE_CHECKING:
    from effllava_optuna.storage.integrity import CheckResult


@click.command()
@study_options(required=False)
@click.option(
    "--repair",
    is_flag=True,
    help="Fail the trials of processes that have ended, and remove their unfinished files.",
)
@format_option
def doctor(location: StudyLocation | None, *, repair: bool, output_format: OutputFormat) -> None:
    """Check this machine and, if one is given, a study.

    A study is checked for faults of its database, trials, artifacts and export. The exit code is 2
    after a fault, and 0 if there are only warnings.

    \b
    Example:
      effllava-optuna doctor studies/quickstart.toml
    """
    if repair and location is None:
        raise ConfigError(
            "--repair needs a study.", hint="Use a study file, or --storage URL --study-name NAME."
        )
    quiet_optuna()
    from effllava_optuna.cli.diagnostics import check_machine

    config = None if location is None else location.config
    model = None if config is None else config.model.path
    results = check_machine(_directory_of(location), model)
    repaired: list[str] = []
    if location is not None:
        study_results, repaired = _check_location(location, repair=repair)
        results += study_results
    if output_format == "json":
        findings = [asdict(result) for result in results]
        print_json({"findings": findings, "repaired": repaired})
    else:
        from effllava_optuna.cli.rendering import render_checks

        console().print(render_checks(results))
        for line in repaired:
            print_line(f"repaired: {line}")
        if repair and not repaired:
            print_line("Nothing to repair.")
    if any(result.state == "fault" for result in results):
        sys.exit(EXIT_ERROR)


def _check_location(
    location: StudyLocation, *, repair: bool
) -> tuple[list[CheckResult], list[str]]:
    """Check the storage of a study and, if it has begun, the study.

    Returns:
        The results, and one line for each repair.
    """
    from effllava_optuna.storage import integrity

    results = integrity.check_storage(location)
    if any(result.state == "fault" for result in results):
        return results, []
    if location.file is not None and not location.exists():
        return results, []
    repaired = integrity.repair(location) if repair else []
    return results + integrity.check_study(location), repaired


def _directory_of(location: StudyLocation | None) -> Path:
    """Return the directory of a study file or database, or else the current directory."""
    if location is None:
        return Path.cwd()
    if location.file is not None:
        return location.file.absolute().parent
    from effllava_optuna.storage.urls import file_of

    try:
        database = file_of(location.url)
    except EffllavaError:
        database = None
    return Path.cwd() if database is None else database.absolute().parent
