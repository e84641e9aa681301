"""The command line: ``python -m effllava_optuna.study VERB FILE``."""

from __future__ import annotations

import functools
import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from effllava_optuna.errors import EffllavaError, SpecError
from effllava_optuna.study import storage
from effllava_optuna.study.screen import (
    Screen,
    calibration,
    console,
    exported,
    quiet_transformers,
    recovered,
)
from effllava_optuna.study.spec import read_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna import Study

    from effllava_optuna.study.evolution import Epochs
    from effllava_optuna.study.spec import StudySpec


@dataclass(frozen=True, slots=True)
class Target:
    """The study that a command is about.

    Attributes:
        url: Of its database.
        name: Its name.
        spec: What the file says; None where no file was given.
        again: How to name it in another command.
    """

    url: str
    name: str
    spec: StudySpec | None
    again: str

    def study(self) -> Study:
        """Open the study; the file, if one was given, must still say the same.

        Raises:
            StudyError: There is no such study.
            SpecError: The file says something else than the study was begun with.
        """
        study = storage.open_study(storage.open_storage(self.url), self.name)
        if self.spec is not None:
            changed = storage.difference(storage.spec_of(study), self.spec)
            if changed is not None:
                raise SpecError(
                    f"{self.again}: {changed}.",
                    hint="Put the file back, or give a new study another study.name.",
                )
        return study


def _targeted(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take a study file, or a database and a name."""

    @click.argument("file", required=False, type=click.Path(path_type=Path))
    @click.option("--storage", "url", help="Database URL, instead of FILE.")
    @click.option("--study-name", "name", help="Name of the study in that database.")
    @_command
    @functools.wraps(command)
    def wrapped(file: Path | None, url: str | None, name: str | None, **rest: Any) -> None:
        command(target=_target(file, url, name), **rest)

    return wrapped


def _workers(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take more processes and their devices."""
    for option in (
        click.option(
            "--device", help="Devices of the processes, in turn, such as cuda:0,cuda:1."
        ),
        click.option(
            "--workers", default=1, show_default=True, type=click.IntRange(1, 256),
            help="Processes that search; each loads the model.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


_force = click.option(
    "--force",
    is_flag=True,
    help="Go on though versions, machine, weights or samples have changed; it is recorded.",
)


def _target(file: Path | None, url: str | None, name: str | None) -> Target:
    if file is not None:
        if url is not None or name is not None:
            raise SpecError(
                "Both a study file and --storage or --study-name are given.",
                hint="Give one of them.",
            )
        return _target_of(file, read_spec(file))
    if url is None or name is None:
        raise SpecError(
            "No study is given.", hint="Give a study file, or --storage URL --study-name NAME."
        )
    return Target(url, name, None, _named(url, name))


def _named(url: str, name: str) -> str:
    return f"--storage {shlex.quote(url)} --study-name {shlex.quote(name)}"


def _target_of(file: Path, spec: StudySpec) -> Target:
    url = spec.study.storage or f"sqlite:///{file.with_suffix('.db')}"
    return Target(url, spec.study.name, spec, str(file))


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Show our errors as one line, with exit code 2."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            function(*arguments, **options)
        except EffllavaError as error:
            _complain(str(error), error)
        except (StorageInternalError, SQLAlchemyError) as error:
            cause = getattr(error.__cause__ or error, "orig", None) or error
            _complain(
                f"The database failed: {cause}. Nothing that was stored is lost; make room or "
                "unlock it, then continue with `resume`.",
                error,
            )

    return wrapped


def _complain(message: str, error: Exception) -> None:
    click.echo(" ".join(message.split()), err=True)
    raise SystemExit(2) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Search a structured-pruning policy for a vision-language model.

    \b
    Example:
      python -m effllava_optuna.study run studies/quickstart.toml
    """


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Load the model and the samples, too.")
@_command
def check(file: Path, *, deep: bool) -> None:
    """Check a study file; nothing is created.

    \b
    Example:
      python -m effllava_optuna.study check studies/quickstart.toml --deep
    """
    spec = read_spec(file)
    target = _target_of(file, spec)
    search = spec.search
    click.echo(
        f"{file}: study {spec.study.name!r}, {search.epochs} epochs x {search.generations} "
        f"generations x {search.population} policies = {search.trials} trials, in {target.url}"
    )
    if deep:
        quiet_transformers()
        from effllava_optuna.study.workbench import Workbench
        from effllava_optuna.tasks import Split

        with Workbench(spec) as bench:
            sizes = ", ".join(f"{len(bench.task.samples(split))} {split}" for split in Split)
            click.echo(
                f"model {spec.model.path!r}: {len(bench.anatomy.sites)} sites on "
                f"{bench.loaded.device}; task {bench.task.name!r}: {sizes}"
            )


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Override a key.")
@_workers
@_command
def run(file: Path, changes: tuple[str, ...], workers: int, device: str | None) -> None:
    """Run a study from its beginning: calibrate, search, evolve, report, export.

    \b
    Example:
      python -m effllava_optuna.study run studies/quickstart.toml --set study.seed=1
    """
    target = _target_of(file, read_spec(file, changes))
    if changes:  # which the file does not know of
        target = replace(target, again=_named(target.url, target.name))
    if target.spec is None:
        raise SpecError(f"{file}: no study.", hint="Give a study file.")
    quiet_transformers()
    from effllava_optuna.study.crew import devices_for
    from effllava_optuna.study.loop import begun

    mine, *others = devices_for(workers, device)
    with (
        Screen(target.again) as screen,
        begun(target.spec, target.url, screen.say, device=mine) as epochs,
    ):
        _to_the_end(epochs, screen, target, file, others)


@main.command()
@_targeted
@_workers
@_force
def resume(target: Target, workers: int, device: str | None, *, force: bool) -> None:
    """Continue a study that was interrupted or killed, from where it stands.

    \b
    Example:
      python -m effllava_optuna.study resume studies/quickstart.toml
    """
    study = target.study()
    if target.spec is not None:
        storage.renew(study, target.spec)
    quiet_transformers()
    from effllava_optuna.study.crew import devices_for
    from effllava_optuna.study.loop import continued

    mine, *others = devices_for(workers, device)
    with (
        Screen(target.again) as screen,
        continued(study, target.url, screen.say, device=mine, force=force) as epochs,
    ):
        _to_the_end(epochs, screen, target, Path(target.again) if target.spec else None, others)


@main.command()
@_targeted
@click.option("--device", help="Device of this worker; what the study says if not given.")
@_force
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
@_targeted
@click.option("--json", "as_json", is_flag=True, help="Print the document as JSON.")
def status(target: Target, *, as_json: bool) -> None:
    """Say where a study stands.

    \b
    Example:
      python -m effllava_optuna.study status studies/quickstart.toml --json
    """
    found = _document(target.study())
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    from effllava_optuna.report import summary

    console().print(summary(found))


@main.command()
@_targeted
@click.option("--json", "as_json", is_flag=True, help="Print the document as JSON.")
def report(target: Target, *, as_json: bool) -> None:
    """Compare the dense model, the uniform baselines, the front and the chosen policy.

    \b
    Example:
      python -m effllava_optuna.study report studies/quickstart.toml
    """
    found = _document(target.study())
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    from effllava_optuna.report import policies, summary

    console().print(summary(found), "", policies(found))


@main.command("export")
@_targeted
@click.option("--trial", type=int, help="Which trial; the chosen one if not given.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory of the checkpoint.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("native", "portable", "onnx")),
    help="native: each layer has its own size. portable: loads wherever the base model does. "
    "onnx: a file with the language part. Not given: as the study file says, or native.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
@click.option(
    "--sequential",
    is_flag=True,
    help="Fit layer after layer on the pruned layers before it, and measure again.",
)
def export_(
    target: Target,
    trial: int | None,
    out: Path | None,
    form: Literal["native", "portable", "onnx"] | None,
    *,
    overwrite: bool,
    sequential: bool,
) -> None:
    """Write a policy's checkpoint with its own basis, and verify it in a fresh process.

    \b
    Example:
      python -m effllava_optuna.study export studies/quickstart.toml --trial 17 --out pruned
      python -m effllava_optuna.study export studies/quickstart.toml --format onnx --out a.onnx
    """
    study = target.study()
    spec = storage.spec_of(study)
    number = trial if trial is not None else study.user_attrs.get(storage.CHOSEN)
    if number is None:
        raise SpecError(
            f"Study {study.study_name!r} has chosen no trial yet.",
            hint="Finish it with `resume`, or give --trial.",
        )
    directory = out or _export_directory(spec, Path(target.again) if target.spec else None)
    if directory is None:
        raise SpecError("There is no directory to write to.", hint="Give --out DIR.")
    quiet_transformers()
    from effllava_optuna.study.checkpoint import write_checkpoint
    from effllava_optuna.study.loop import continued

    if form == "onnx" and out is None:
        directory = directory.with_suffix(".onnx")
    with Screen(target.again) as screen, continued(study, target.url, screen.say) as epochs:
        screen.say("exporting and verifying", 0.0)
        written = write_checkpoint(
            epochs,
            number,
            directory,
            form=form or spec.form,
            overwrite=overwrite,
            sequential=sequential or spec.export.sequential,
        )
        screen.told(exported(written))


@main.command()
@_targeted
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory of the new checkpoint.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="What to recover; the study's export if not given.",
)
@click.option(
    "--part",
    type=click.Choice(("projector", "lora")),
    default="lora",
    show_default=True,
    help="What learns: the projector, or adapters on the decoder that are merged.",
)
@click.option(
    "--data",
    metavar="TASK",
    help="Whose proxy split teaches, as task.name; the study's if not given.",
)
@click.option(
    "--samples", type=click.IntRange(8, 4096), help="How many; the study's if not given."
)
@click.option("--steps", default=300, show_default=True, type=click.IntRange(1))
@click.option("--overwrite", is_flag=True, help="Replace an earlier export.")
def recover(
    target: Target, out: Path, checkpoint: Path | None, *, overwrite: bool, **course: Any
) -> None:
    """Distil the dense model's answers into an exported checkpoint, and export it again.

    Nothing is learned from validation or test; accuracy on validation is printed.

    \b
    Example:
      python -m effllava_optuna.study recover studies/quickstart.toml --out recovered
    """
    spec = storage.spec_of(target.study())
    place = checkpoint or _export_directory(spec, Path(target.again) if target.spec else None)
    if place is None:
        raise SpecError("There is no checkpoint to recover.", hint="Give --checkpoint DIR.")
    quiet_transformers()
    from effllava_optuna.study.recovery import Course, recover_checkpoint

    with Screen(target.again) as screen:
        report = recover_checkpoint(
            spec, Course(**course), place, out, screen.say, overwrite=overwrite
        )
        screen.told(recovered(report))


@main.command()
@_targeted
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


def _document(study: Study) -> dict[str, Any]:
    from effllava_optuna.report import document
    from effllava_optuna.study.facts import facts_of

    return document(facts_of(study))


def _to_the_end(
    epochs: Epochs,
    screen: Screen,
    target: Target,
    file: Path | None,
    others: Sequence[str | None],
) -> None:
    """Search, report and export; what is done already is not done again."""
    from effllava_optuna.report import policies, summary
    from effllava_optuna.study.checkpoint import write_checkpoint
    from effllava_optuna.study.crew import crew
    from effllava_optuna.study.loop import conclude, search

    screen.told(calibration(epochs))
    with crew(target.url, target.name, others):
        search(epochs, screen.watch)
    conclude(epochs)
    found = _document(epochs.study)
    screen.told(summary(found), "", policies(found))
    directory = _export_directory(epochs.spec, file)
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


def _export_directory(spec: StudySpec, file: Path | None) -> Path | None:
    directory = spec.export.directory
    if directory is None:
        return None
    return Path(directory) if file is None else file.parent / directory
