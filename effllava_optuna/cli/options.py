"""Options that several commands share."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from effllava_optuna.errors import ConfigError, EffllavaError
from effllava_optuna.files import expand_home
from effllava_optuna.logging import logging_to_file, set_verbosity
from effllava_optuna.storage.location import StudyLocation, locate, locate_file

if TYPE_CHECKING:
    from collections.abc import Callable

    Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class UserPath(click.Path):
    """A path in which ``~`` is the home directory: shells do not expand ``--out=~/a``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert a word of the command line to a path."""
        return super().convert(expand_home(value) if value else value, param, ctx)


_STUDY_FILE = UserPath()
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
_VERBOSITY = "effllava_optuna.verbosity"  # key in `click.Context.meta`

OutputFormat = Literal["json", "table"]

format_option = click.option(
    "-f",
    "--format",
    "output_format",
    type=click.Choice(("json", "table")),
    default="table",
    show_default=True,
    help="Print tables, or JSON for programs.",
)

force_option = click.option(
    "--force",
    is_flag=True,
    help="Continue although versions, machine, weights or samples have changed; the changes are "
    "recorded in the study.",
)

study_file_argument = click.argument("file", type=_STUDY_FILE)


def worker_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--workers`` and ``--device``."""
    device = click.option(
        "--device",
        metavar="DEVICE",
        help="Device, or devices that the processes use in turn, such as cuda:0,cuda:1.",
    )
    workers = click.option(
        "--workers",
        metavar="N",
        default=1,
        show_default=True,
        type=click.IntRange(1, 256),
        help="Number of processes that search; each loads the model.",
    )
    return device(workers(command))


def study_options(*, required: bool = True, of_model: str | None = None) -> Decorator:
    """Add FILE, ``--storage`` and ``--study-name``; the command gets a ``location``.

    Args:
        required: Whether the command needs a study; otherwise ``location`` may be None.
        of_model: Name of the option with which FILE is a model, as a directory always is; the
            command then gets the path or hub id as ``model``, and no location.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.argument("file", required=False, type=_STUDY_FILE)
        @_storage_option
        @click.option(
            "--study-name",
            "name",
            metavar="NAME",
            shell_complete=_complete_study_name,
            help="Name of the study in that database.",
        )
        @functools.wraps(command)
        def wrapped(file: Path | None, url: str | None, name: str | None, **options: Any) -> None:
            if of_model is not None:
                is_directory = file is not None and file.is_dir()
                is_model = options[of_model] is not None or is_directory
                options["model"] = None if file is None or not is_model else str(file)
                if is_model:
                    if name or (url and not _url_is_from_environment()):
                        raise ConfigError(
                            f"A directory or --{of_model.replace('_', '-')} means a model, but "
                            "--storage or --study-name names a study.",
                            hint="Use one of them.",
                        )
                    command(location=None, **options)
                    return
            if _url_is_from_environment() and (file is not None or not (name or required)):
                url = None
            if not required and file is None and url is None and name is None:
                command(location=None, **options)
            else:
                command(location=_locate_study(file, url, name), **options)

        return wrapped

    return decorate


def several_study_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add FILE..., ``--storage`` and ``--study-name``...; the command gets ``locations``."""

    @click.argument("files", nargs=-1, metavar="[FILE]...", type=_STUDY_FILE)
    @_storage_option
    @click.option(
        "--study-name",
        "names",
        metavar="NAME",
        multiple=True,
        shell_complete=_complete_study_name,
        help="Name of a study in that database; can be repeated.",
    )
    @functools.wraps(command)
    def wrapped(
        files: tuple[Path, ...], url: str | None, names: tuple[str, ...], **options: Any
    ) -> None:
        if files and _url_is_from_environment():
            url = None
        if files:
            first_name = names[0] if names else None
            locations = [_locate_study(file, url, first_name) for file in files]
        else:
            locations = [_locate_study(None, url, name) for name in names or (None,)]
        command(locations=locations, **options)

    return wrapped


def verbosity_options() -> list[click.Parameter]:
    """Return the options ``--quiet``, ``--verbose`` and ``--log-file`` for one command."""
    return [
        click.Option(
            ["-q", "--quiet"],
            flag_value=0,
            type=int,
            expose_value=False,
            callback=_set_quiet,
            help="Print only results, warnings and errors.",
        ),
        click.Option(
            ["-v", "--verbose"],
            count=True,
            expose_value=False,
            callback=_set_verbose,
            help="Print debug messages, and the traceback of an error.",
        ),
        click.Option(
            ["--log-file"],
            type=UserPath(),
            expose_value=False,
            callback=_set_log_file,
            help="Write all messages, debug messages included, to this file, too.",
        ),
    ]


def _complete_study_name(
    context: click.Context, _: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the name of a study in the storage that the command line names."""
    from effllava_optuna.storage.studies import study_names

    url = context.params.get("url")
    try:
        names = study_names(url) if url else []
    except EffllavaError:
        names = []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


_storage_option = click.option(
    "--storage",
    "url",
    metavar="URL",
    envvar="OPTUNA_STORAGE",
    help="Database of the study, instead of FILE; by default the environment variable "
    "OPTUNA_STORAGE.",
)


def _url_is_from_environment() -> bool:
    """Return whether the URL of the storage comes from the environment variable."""
    source = click.get_current_context().get_parameter_source("url")
    return source is ParameterSource.ENVIRONMENT


def _locate_study(file: Path | None, url: str | None, name: str | None) -> StudyLocation:
    if file is not None:
        if url is not None or name is not None:
            raise ConfigError(
                "Both a study file and --storage or --study-name are given.",
                hint="Use one of them.",
            )
        from effllava_optuna.config.loading import load_config

        return locate_file(file, load_config(file))
    if not url or not name:
        raise ConfigError(
            "No study is given.", hint="Use a study file, or --storage URL --study-name NAME."
        )
    return locate(url, name)


def _set_quiet(context: click.Context, _: click.Parameter, level: int | None) -> None:
    if level is not None:
        _set_level(context, level)


def _set_verbose(context: click.Context, _: click.Parameter, count: int) -> None:
    if count:
        _set_level(context, min(1 + count, 2))


def _set_level(context: click.Context, level: int) -> None:
    if context.meta.setdefault(_VERBOSITY, level) != level:
        raise click.UsageError("--quiet and --verbose are both given.", context)
    set_verbosity(_LEVELS[level])


def _set_log_file(context: click.Context, _: click.Parameter, file: Path | None) -> None:
    if file is None:
        return
    path = file if file.exists() else file.absolute().parent
    if file.is_dir() or not path.exists() or not os.access(path, os.W_OK):
        raise click.UsageError(f"--log-file {str(file)!r} cannot be written.", context)
    context.with_resource(logging_to_file(file))
