"""The command line: ``python -m effllava_optuna.study VERB FILE``.

What a verb needs is imported when it runs: help and completion answer at once.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from effllava_optuna import __version__
from effllava_optuna.study import (
    cli_doctor,
    cli_evaluate,
    cli_init,
    cli_model,
    cli_report,
    cli_shell,
)
from effllava_optuna.study.group import Verbs
from effllava_optuna.study.screen import Screen, calibration, exported, quiet_transformers
from effllava_optuna.study.target import (
    Format,
    Target,
    export_directory,
    named,
    ours,
    print_json,
    quiet_optuna,
    shown,
    target_of,
    targeted,
    with_file,
    with_force,
    with_format,
    with_workers,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from effllava_optuna.study.evolution import Epochs


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
)
@click.version_option(__version__, prog_name="effllava_optuna")
def main() -> None:
    """Search a structured-pruning policy for a vision-language model.

    \b
    Example:
      python -m effllava_optuna.study run studies/quickstart.toml
    """


@main.command()
@with_file
@click.option(
    "--deep", is_flag=True, help="Load the model and the samples, too, and open every picture."
)
@with_format
@ours
def check(file: Path, *, deep: bool, form: Format) -> None:
    """Check a study file; nothing is created.

    \b
    Example:
      python -m effllava_optuna.study check studies/quickstart.toml --deep
    """
    from effllava_optuna.study.spec import read_spec

    spec = read_spec(file)
    target = target_of(file, spec)
    search = spec.search
    if form == "table":
        click.echo(
            f"{file}: study {spec.study.name!r}, {search.epochs} epochs x {search.generations} "
            f"generations x {search.population} policies = {search.trials} trials, in "
            f"{shown(target.url)}"
        )
    found = spec.document() | {"trials": search.trials, "url": target.url}
    if deep:
        quiet_transformers()
        from effllava_optuna.study.grading import told_of
        from effllava_optuna.study.vetting import vet
        from effllava_optuna.study.workbench import Workbench
        from effllava_optuna.tasks import DataTask, Split

        with (
            Screen(str(target.again), "check --deep", aside=form != "table") as screen,
            Workbench(spec) as bench,
        ):
            parts = {split: bench.task.samples(split) for split in Split}
            vet(bench, lambda share: screen.say("asking, and opening the pictures", share))
            metric = told_of(spec, bench.task)["metric"]
            lines = [
                f"model {spec.model.path!r}: {len(bench.anatomy.sites)} sites on "
                f"{bench.loaded.device}; task {bench.task.name!r}: "
                + ", ".join(f"{len(samples)} {split}" for split, samples in parts.items()),
                f"graded by {metric['report']}; in the search by {metric['search']}",
            ]
            if isinstance(bench.task, DataTask):
                out, rows = bench.task.left_out
                lines.append(
                    f"{out:,} of {rows:,} rows are in no split: sizes are reached, or their "
                    "picture is in another split"
                )
            if form == "table":
                screen.told(*lines)
            found["deep"] = {
                "sites": len(bench.anatomy.sites),
                "device": str(bench.loaded.device),
                "samples": {str(split): len(samples) for split, samples in parts.items()},
                "metric": metric,
            }
    if form != "table":
        print_json(found)


@main.command()
@with_file
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Override a key.")
@with_workers
@ours
def run(file: Path, changes: tuple[str, ...], workers: int, device: str | None) -> None:
    """Run a study from its beginning: calibrate, search, evolve, report, export.

    \b
    Example:
      python -m effllava_optuna.study run studies/quickstart.toml --set study.seed=1
    """
    from effllava_optuna.study.spec import read_spec

    spec = read_spec(file, changes)
    target = target_of(file, spec)
    if changes:  # which the file does not know of
        target = replace(target, again=named(target.url, target.name))
    quiet_optuna()
    quiet_transformers()
    from effllava_optuna.study.crew import devices_for
    from effllava_optuna.study.loop import begun

    settings = [word for change in changes for word in ("--set", change)]

    def instead() -> str | None:
        """Begin again, where there is nothing to resume."""
        return None if target.is_there() else shlex.join(["run", str(file), *settings])

    mine, *others = devices_for(workers, device)
    with (
        Screen(target.again, instead=instead) as screen,
        begun(spec, target.url, screen.say, device=mine) as epochs,
    ):
        _to_the_end(epochs, screen, target, others)


@main.command()
@targeted
@with_workers
@with_force
def resume(target: Target, workers: int, device: str | None, *, force: bool) -> None:
    """Continue a study that was interrupted or killed, from where it stands.

    Of one that is over nothing is done again; its export is written if it is missing or damaged.

    \b
    Example:
      python -m effllava_optuna.study resume studies/quickstart.toml
    """
    from effllava_optuna.study import storage

    study = target.study()
    if target.spec is not None:
        storage.renew(study, target.spec)
    if storage.RESULTS in study.user_attrs:
        click.echo(f"The search of {study.study_name!r} is over; nothing is searched again.")
        from effllava_optuna.study.integrity import export_stands

        spec = storage.spec_of(study)
        directory = export_directory(spec, target.file)
        if directory is None or export_stands(study, spec, directory):
            told = "" if directory is None else f"Its export is in {directory}, whole. "
            click.echo(f"{told}See `report {target.again}`; another policy: `export --trial`.")
            return
    quiet_transformers()
    from effllava_optuna.study.crew import devices_for
    from effllava_optuna.study.loop import continued

    mine, *others = devices_for(workers, device)
    with (
        Screen(target.again) as screen,
        continued(study, target.url, screen.say, device=mine, force=force) as epochs,
    ):
        _to_the_end(epochs, screen, target, others)


@main.command()
@targeted
@click.option("--device", help="Device of this worker; what the study says if not given.")
@with_force
def worker(target: Target, device: str | None, *, force: bool) -> None:
    """Help with a study that was begun elsewhere, until its search is over.

    It needs the database, the artifacts and the model, and no study file: the study knows what it
    was told. It may come and go at any time.

    \b
    Example:
      python -m effllava_optuna.study worker --storage sqlite:///q.db --study-name quickstart
    """
    study = target.study()
    quiet_transformers()
    from effllava_optuna.study.loop import continued, search

    with (
        Screen(target.again, verb="worker") as screen,
        continued(study, target.url, screen.say, device=device, force=force) as epochs,
    ):
        search(epochs, screen.watch)


@main.command()
@targeted
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
def dashboard(target: Target, host: str, port: int) -> None:
    """Serve optuna-dashboard over the study's database and artifacts, until Ctrl-C.

    \b
    Example:
      python -m effllava_optuna.study dashboard studies/quickstart.toml --port 8080
    """
    study = target.study()
    from effllava_optuna.study.board import serve

    serve(study, target.url, host, port)


for _command in (
    cli_report.status,
    cli_report.report,
    cli_report.pick,
    cli_model.anatomy,
    cli_model.export_,
    cli_model.recover,
    cli_evaluate.evaluate,
    cli_init.init,
    cli_doctor.doctor,
    cli_shell.completion,
):
    main.add_command(_command)


def _to_the_end(
    epochs: Epochs, screen: Screen, target: Target, others: Sequence[str | None]
) -> None:
    """Search, report and export; what is done already is not done again."""
    from effllava_optuna.study.checkpoint import write_checkpoint
    from effllava_optuna.study.crew import crew
    from effllava_optuna.study.loop import conclude, search

    screen.noted(calibration(epochs))
    with crew(target.url, target.name, others):
        search(epochs, screen.watch)
    conclude(epochs)
    found = cli_report.document_of(epochs.study)
    screen.told(*cli_report.tables_of(found))
    directory = export_directory(epochs.spec, target.file)
    if directory is not None:
        screen.say("exporting and verifying", 0.0)
        written = write_checkpoint(
            epochs,
            found["chosen"]["trial"],
            directory,
            form=epochs.spec.form,
            overwrite=True,
            sequential=epochs.spec.export.sequential,
        )
        screen.told(exported(written))
