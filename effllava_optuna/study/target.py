"""What the verbs of the command line share: the study they are about, and how errors look."""

from __future__ import annotations

import functools
import json
import logging
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from effllava_optuna.errors import EffllavaError, SpecError, StudyError
from effllava_optuna.logging import get_logger, get_verbosity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from optuna import Study

    from effllava_optuna.study.spec import StudySpec

_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """The study that a command is about.

    Attributes:
        url: Of its database.
        name: Its name.
        spec: What the file says; None where no file was given.
        again: How to name it in another command.
        file: The study file, if one was given.
    """

    url: str
    name: str
    spec: StudySpec | None
    again: str
    file: Path | None = None

    def study(self) -> Study:
        """Open the study; the file, if one was given, must still say the same.

        The data may have moved with the file: that they are the same ones is held by the digest
        of the task.

        Raises:
            StudyError: There is no such study.
            SpecError: The file says something else than the study was begun with.
        """
        from effllava_optuna.study import storage

        quiet_optuna()
        study = storage.open_study(storage.open_storage(self.url), self.name)
        if self.spec is not None:
            changed = storage.difference(storage.spec_of(study), self.spec)
            if changed is not None:
                raise SpecError(
                    f"{self.file}: {changed}.",
                    hint="Put the file back, or give a new study another study.name.",
                )
            storage.follow(study, self.spec)
        return study

    def is_there(self) -> bool:
        """Tell whether the study has been begun; nothing is created to find out."""
        from effllava_optuna.study import storage

        try:
            storage.open_study(storage.open_storage(self.url), self.name)
        except EffllavaError:
            return False
        return True


def _study_names(
    context: click.Context, _: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a study from the storage that the command line already names."""
    from effllava_optuna.study import storage

    url = context.params.get("url")
    try:
        names = storage.names_in(url) if url else []
    except EffllavaError:
        names = []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


_STUDY_FILE = click.Path(path_type=Path)


def with_file(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take a study file."""
    return click.argument("file", type=_STUDY_FILE)(command)


_with_storage = click.option(
    "--storage",
    "url",
    envvar="OPTUNA_STORAGE",
    help="Database URL, instead of FILE; else OPTUNA_STORAGE of the environment.",
)


def with_target(*, required: bool = True) -> Callable[..., Callable[..., None]]:
    """Let a command take a study file, or a database and a name.

    Args:
        required: Refuse a command line without a study; otherwise the target may be None.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.argument("file", required=False, type=_STUDY_FILE)
        @_with_storage
        @click.option(
            "--study-name",
            "name",
            shell_complete=_study_names,
            help="Name of the study in that database.",
        )
        @click.pass_context
        @ours
        @functools.wraps(command)
        def wrapped(
            ctx: click.Context, file: Path | None, url: str | None, name: str | None, **rest: Any
        ) -> None:
            if _from_environment(ctx):
                url = None if file is not None or not (name or required) else url
            nothing = not required and file is None and url is None and name is None
            command(target=None if nothing else _target(file, url, name), **rest)

        return wrapped

    return decorate


targeted = with_target()


def several_targeted(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take several study files, or a database and several names."""

    @click.argument("files", nargs=-1, metavar="[FILE]...", type=_STUDY_FILE)
    @_with_storage
    @click.option(
        "--study-name",
        "names",
        multiple=True,
        shell_complete=_study_names,
        help="Name of a study in that database.",
    )
    @click.pass_context
    @ours
    @functools.wraps(command)
    def wrapped(
        ctx: click.Context,
        files: tuple[Path, ...],
        url: str | None,
        names: tuple[str, ...],
        **rest: Any,
    ) -> None:
        if files and _from_environment(ctx):
            url = None
        name = names[0] if names else None
        targets = [_target(file, url, name) for file in files]
        command(targets=targets or [_target(None, url, each) for each in names or (None,)], **rest)

    return wrapped


def _from_environment(ctx: click.Context) -> bool:
    """Tell whether nobody gave the storage on the command line."""
    return ctx.get_parameter_source("url") is ParameterSource.ENVIRONMENT


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


Format = Literal["json", "table"]

with_format = click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice(("json", "table")),
    default="table",
    show_default=True,
    help="json is for programs.",
)


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document for programs."""
    click.echo(json.dumps(document, indent=2))


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
        from effllava_optuna.study.spec import read_spec

        return target_of(file, read_spec(file))
    if not url or not name:
        raise SpecError(
            "No study is given.", hint="Give a study file, or --storage URL --study-name NAME."
        )
    return Target(url, name, None, named(url, name))


def named(url: str, name: str) -> str:
    """Give the options that name a study by its database."""
    return f"--storage {shlex.quote(url)} --study-name {shlex.quote(name)}"


def shown(url: str) -> str:
    """Give a URL without its password, as it is shown to people.

    Example:
        >>> shown("postgresql+psycopg://me:secret@host/name")
        'postgresql+psycopg://me:***@host/name'
    """
    return re.sub(r"(?<=://)([^:/@]*):[^@/]*@", r"\1:***@", url)


def target_of(file: Path, spec: StudySpec) -> Target:
    """Give the study that a file is about.

    Raises:
        SpecError: It names a storage, or a place for artifacts, that cannot be used.
    """
    url = spec.study.storage or f"sqlite:///{file.with_suffix('.db')}"
    if spec.study.storage is not None or spec.study.artifacts is not None:
        from effllava_optuna.study.artifacts import store_for
        from effllava_optuna.study.storage import refuse_url

        try:
            refuse_url(url)
            store_for(url, spec)
        except StudyError as error:
            raise SpecError(f"{file}: [study]: {error.message}", hint=error.hint) from error
    return Target(url, spec.study.name, spec, shlex.quote(str(file)), file)


def quiet_optuna() -> None:
    """Let Optuna tell of its trials only where everything is to be told."""
    import optuna

    verbose = get_verbosity() <= logging.DEBUG
    optuna.logging.set_verbosity(logging.INFO if verbose else logging.ERROR)


def ours(function: Callable[..., None]) -> Callable[..., None]:
    """Show our errors as one line, with exit code 2."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> None:
        try:
            function(*arguments, **options)
        except EffllavaError as error:
            _complain(str(error), error)
        except Exception as error:
            if not _of_database(error):
                raise
            cause = getattr(error.__cause__ or error, "orig", None) or error
            _complain(
                f"The database failed: {cause}. Nothing that was stored is lost; make room or "
                "unlock it, then continue with `resume`.",
                error,
            )

    return wrapped


def _of_database(error: Exception) -> bool:
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, (StorageInternalError, SQLAlchemyError))


def _complain(message: str, error: Exception) -> None:
    _logger.debug("This is where it went wrong:", exc_info=error)
    click.echo(one_line(message), err=True)
    raise SystemExit(2) from error


def one_line(message: str) -> str:
    """Give a message without anything that would break its line."""
    words = "".join(sign if sign.isprintable() else " " for sign in message).split()
    return " ".join(words)


def export_directory(spec: StudySpec, file: Path | None) -> Path | None:
    """Give the directory that a study exports to, beside its file; None: it does not."""
    directory = spec.export.directory
    if directory is None:
        return None
    return Path(directory) if file is None else file.parent / directory
