"""What the verbs of the command line share: the study they are about, and how errors look."""

from __future__ import annotations

import functools
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from effllava_optuna.errors import EffllavaError, SpecError
from effllava_optuna.study import storage
from effllava_optuna.study.spec import read_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from optuna import Study

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

        The data may have moved with the file: that they are the same ones is held by the digest
        of the task.

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
            storage.follow(study, self.spec)
        return study


def targeted(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take a study file, or a database and a name."""

    @click.argument("file", required=False, type=click.Path(path_type=Path))
    @click.option("--storage", "url", help="Database URL, instead of FILE.")
    @click.option("--study-name", "name", help="Name of the study in that database.")
    @ours
    @functools.wraps(command)
    def wrapped(file: Path | None, url: str | None, name: str | None, **rest: Any) -> None:
        command(target=_target(file, url, name), **rest)

    return wrapped


def several_targeted(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take several study files, or a database and several names."""

    @click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(path_type=Path))
    @click.option("--storage", "url", help="Database URL, instead of FILE.")
    @click.option("--study-name", "names", multiple=True, help="Name of a study in that database.")
    @ours
    @functools.wraps(command)
    def wrapped(
        files: tuple[Path, ...], url: str | None, names: tuple[str, ...], **rest: Any
    ) -> None:
        if files or len(names) < 2:
            one = names[0] if names else None
            targets = [_target(file, url, one) for file in files or (None,)]
        else:
            targets = [_target(None, url, name) for name in names]
        command(targets=targets, **rest)

    return wrapped


def with_workers(command: Callable[..., None]) -> Callable[..., None]:
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


Format = Literal["json", "table", "yaml"]

with_format = click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice(("json", "table", "yaml")),
    default="table",
    show_default=True,
    help="json and yaml are for programs.",
)


def written_as(form: Format, document: Mapping[str, Any]) -> str:
    """Write a document for programs."""
    if form == "json":
        return json.dumps(document, indent=2)
    import yaml

    # By way of JSON: what is written is the same, and has no Python in it.
    return str(yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False)).rstrip()


with_force = click.option(
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
        return target_of(file, read_spec(file))
    if url is None or name is None:
        raise SpecError(
            "No study is given.", hint="Give a study file, or --storage URL --study-name NAME."
        )
    return Target(url, name, None, named(url, name))


def named(url: str, name: str) -> str:
    """Give the options that name a study by its database."""
    return f"--storage {shlex.quote(url)} --study-name {shlex.quote(name)}"


def target_of(file: Path, spec: StudySpec) -> Target:
    """Give the study that a file is about."""
    url = spec.study.storage or f"sqlite:///{file.with_suffix('.db')}"
    return Target(url, spec.study.name, spec, str(file))


def ours(function: Callable[..., None]) -> Callable[..., None]:
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


def export_directory(spec: StudySpec, file: Path | None) -> Path | None:
    """Give the directory that a study exports to, beside its file; None: it does not."""
    directory = spec.export.directory
    if directory is None:
        return None
    return Path(directory) if file is None else file.parent / directory
