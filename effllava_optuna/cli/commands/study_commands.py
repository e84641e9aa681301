"""The commands that run a study: ``run``, ``allocate``, ``resume``, ``worker``, ``dashboard``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from effllava_optuna.cli import PROGRAM
from effllava_optuna.cli.commands.report_commands import document_of
from effllava_optuna.cli.messages import calibration_summary, export_summary
from effllava_optuna.cli.options import (
    force_option,
    study_file_argument,
    study_options,
    worker_options,
)
from effllava_optuna.cli.output import print_line, quiet_optuna, quiet_transformers
from effllava_optuna.cli.progress import ProgressDisplay
from effllava_optuna.passwords import hide_passwords
from effllava_optuna.storage.location import (
    StudyLocation,
    check_outputs,
    locate_file,
    storage_arguments,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study

    from effllava_optuna.search.runner import Callbacks
    from effllava_optuna.search.session import SearchSession


_set_option = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the study file, such as search.epochs=2; can be repeated.",
)


@click.command()
@study_file_argument
@_set_option
@worker_options
def run(file: Path, changes: tuple[str, ...], workers: int, device: str | None) -> None:
    """Run a new study.

    It calibrates, searches, trains the projector between epochs, reports and exports.

    \b
    Example:
      effllava-optuna run studies/quickstart.toml --set study.seed=1
    """
    _begin("run", file, changes, workers, device)


@click.command()
@study_file_argument
@_set_option
@worker_options
def allocate(file: Path, changes: tuple[str, ...], workers: int, device: str | None) -> None:
    """Run a new study without a search.

    It calibrates, takes the sensitivity curve of each component (search.curves), solves for the
    best policies within the budget and below it, and reports and exports as `run` does. A study
    has one search: for a second one, use another name (--set study.name=NAME).

    \b
    Example:
      effllava-optuna allocate studies/quickstart.toml --set study.name=allocated
    """
    _begin("allocate", file, changes, workers, device)


def _begin(
    command: str, file: Path, changes: tuple[str, ...], workers: int, device: str | None
) -> None:
    """Create the study of a file, and work on it to its end."""
    from effllava_optuna.config.loading import load_config

    config = load_config(file, changes)
    location = locate_file(file, config)
    if changes:  # the file alone would describe another study
        location = replace(location, arguments=storage_arguments(location.url, location.name))
    check_outputs(location, config)
    quiet_optuna()
    quiet_transformers()
    from effllava_optuna.search.allocation_study import sized_for, without_search
    from effllava_optuna.search.runner import begin
    from effllava_optuna.search.workers import devices_for

    allocates = command == "allocate"

    def resume_command() -> str:
        if location.exists():
            return f"resume {location.arguments}"
        overrides = [word for change in changes for word in ("--set", change)]
        return hide_passwords(shlex.join([command, str(file), *overrides]))

    own_device, *worker_devices = devices_for(workers, device)
    with (
        ProgressDisplay(resume_command) as display,
        begin(
            without_search(config) if allocates else config,
            location.url,
            display.report_stage,
            device=own_device,
            sized_for=sized_for if allocates else None,
        ) as session,
    ):
        _finish(session, display, location, worker_devices)


@click.command()
@study_options()
@worker_options
@force_option
def resume(location: StudyLocation, workers: int, device: str | None, *, force: bool) -> None:
    """Continue a study that was interrupted or killed.

    A finished study is not searched again; its export is written if it is missing or damaged.

    \b
    Example:
      effllava-optuna resume studies/quickstart.toml
    """
    from effllava_optuna.storage.studies import update_failure_limits, update_paths

    study = location.open()
    if _is_complete(study, location):
        return
    check_outputs(location, location.config_of(study))
    if location.config is not None:
        update_failure_limits(study, location.config)
        update_paths(study, location.config)
    quiet_transformers()
    from effllava_optuna.search.runner import resume as resume_study
    from effllava_optuna.search.workers import devices_for

    own_device, *worker_devices = devices_for(workers, device)
    with (
        ProgressDisplay(f"resume {location.arguments}") as display,
        resume_study(
            study, location.url, display.report_stage, device=own_device, force=force
        ) as session,
    ):
        _finish(session, display, location, worker_devices)


def _is_complete(study: Study, location: StudyLocation) -> bool:
    """Return whether a study has its results and a valid export, and print that it has."""
    from effllava_optuna.storage.integrity import export_is_valid
    from effllava_optuna.storage.names import RESULTS

    if RESULTS not in study.user_attrs:
        return False
    print_line(f"The search of {study.study_name!r} is finished.")
    config = location.config_of(study)
    directory = location.export_directory(config)
    if directory is not None:
        if not export_is_valid(study, config, directory):
            return False
        print_line(f"Its export in {directory} is complete.")
    print_line(
        f"Results: {PROGRAM} report {location.arguments}; another policy: "
        f"{PROGRAM} export {location.arguments} --trial N --out DIR"
    )
    return True


@click.command()
@study_options()
@click.option(
    "--device", metavar="DEVICE", help="Device of this worker; by default that of the study."
)
@force_option
def worker(location: StudyLocation, device: str | None, *, force: bool) -> None:
    """Join a running study until its search is finished.

    A worker needs access to the database, the artifacts and the model, but no study file: the
    study contains it. Workers can be started and stopped at any time.

    \b
    Example:
      effllava-optuna worker --storage sqlite:///q.db --study-name quickstart
    """
    study = location.open()
    location.refuse_read_only()
    quiet_transformers()
    from effllava_optuna.search.runner import resume as resume_study
    from effllava_optuna.search.runner import search

    with (
        ProgressDisplay(f"worker {location.arguments}") as display,
        resume_study(
            study,
            location.url,
            display.report_stage,
            config=location.config_of(study),
            device=device,
            force=force,
        ) as session,
    ):
        search(session, callbacks(display))


@click.command()
@study_options()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address that the server listens on."
)
@click.option(
    "--port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port of the server; 0 selects a free one.",
)
def dashboard(location: StudyLocation, host: str, port: int) -> None:
    """Serve optuna-dashboard for a study until Ctrl-C.

    \b
    Example:
      effllava-optuna dashboard studies/quickstart.toml --port 8080
    """
    study = location.open()
    from effllava_optuna.dashboard.app import application, serve

    config = location.config_of(study)
    serve(study, application(study, location.url, config), host, port, print_line)


def callbacks(display: ProgressDisplay) -> Callbacks:
    """Return the callbacks of the runner: the progress display and the dashboard's pages."""
    from effllava_optuna.dashboard.pages import attach_results, draw_pages
    from effllava_optuna.search.runner import Callbacks

    return Callbacks(
        on_trial=display.show_trial, draw_pages=draw_pages, attach_results=attach_results
    )


def _finish(
    session: SearchSession,
    display: ProgressDisplay,
    location: StudyLocation,
    worker_devices: Sequence[str | None],
) -> None:
    """Search, report and export; finished steps are skipped."""
    from effllava_optuna.cli.rendering import render_report
    from effllava_optuna.search.runner import conclude, search
    from effllava_optuna.search.trial_export import ExportOptions, export_trial
    from effllava_optuna.search.workers import running_workers

    display.print_notes(calibration_summary(session))
    with running_workers(location.url, location.name, worker_devices):
        search(session, callbacks(display))
    conclude(session, callbacks(display))
    document = document_of(session.study)
    directory = location.export_directory(session.config)
    exported = None
    try:
        if directory is not None:
            display.report_stage("exporting and verifying", 0.0)
            exported = export_trial(
                session,
                document["chosen"]["trial"],
                directory,
                ExportOptions(
                    session.config.form,
                    overwrite=True,
                    sequential=session.config.export.sequential,
                ),
            )
    finally:  # the results are stored, whether they can be exported or not
        display.print(*render_report(document, location.arguments))
    if exported is not None:
        display.print(export_summary(exported))
