"""The command line as a whole: what every verb understands, and how it refuses."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from effllava_optuna.logging import set_verbosity, written_to
from effllava_optuna.study.target import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class Verbs(click.Group):
    """Verbs that are as loud as they are told to be, and complain in one line with exit code 2."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += _loudness()

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a verb; it takes ``-q``, ``-v`` and ``--log-file``, as Optuna's do."""
        cmd.params += _loudness()
        super().add_command(cmd, name)

    def main(  # type: ignore[override]  # which of its overloads, depends on `standalone_mode`
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; see `click.Command.main`."""
        set_verbosity(logging.INFO)
        words = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(words, prog_name, standalone_mode=False, **extra)
        try:
            code = super().main(words, prog_name, standalone_mode=False, **extra)
        except click.ClickException as error:
            click.echo(one_line(_told(error, words)), err=True)
            sys.exit(2)
        except click.Abort:
            command = shlex.join(["python", "-m", "effllava_optuna.study", *words])
            click.echo(f"Stopped. Nothing is lost; continue with: {one_line(command)}", err=True)
            sys.exit(INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)


def _told(error: click.ClickException, words: Sequence[str]) -> str:
    """Say what is wrong with a command line, and where to read on."""
    message = error.format_message().rstrip(".")
    if not isinstance(error, click.UsageError):
        return f"{message}."
    context = error.ctx
    verb = "" if context is None or context.parent is None else f" {context.info_name}"
    if not words:
        message = "No verb is given"
    return f"{message}. See: python -m effllava_optuna.study{verb} --help"


def _loudness() -> list[click.Parameter]:
    """Give the options that say what is told, for one command."""
    return [
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_set_quiet,
            help="Tell nothing but results, warnings and errors.",
        ),
        click.Option(
            ["-v", "--verbose"],
            count=True,
            expose_value=False,
            callback=_set_verbose,
            help="Tell more, and where an error comes from. Can be repeated.",
        ),
        click.Option(
            ["--log-file"],
            type=click.Path(path_type=Path),
            expose_value=False,
            callback=_set_file,
            help="Write everything that is told to this file, too.",
        ),
    ]


def _set_quiet(context: click.Context, _: click.Parameter, quiet: bool) -> None:  # noqa: FBT001
    if quiet:
        _set_level(context, 0)


def _set_verbose(context: click.Context, _: click.Parameter, count: int) -> None:
    if count:
        _set_level(context, min(1 + count, 2))


def _set_level(context: click.Context, level: int) -> None:
    if context.meta.setdefault("effllava_optuna.level", level) != level:
        raise click.UsageError("--quiet and --verbose are both given.", context)
    set_verbosity(_LEVELS[level])


def _set_file(context: click.Context, _: click.Parameter, file: Path | None) -> None:
    if file is None:
        return
    place = file if file.exists() else file.absolute().parent
    if file.is_dir() or not place.exists() or not os.access(place, os.W_OK):
        raise click.UsageError(f"--log-file {str(file)!r} cannot be written.", context)
    context.with_resource(written_to(file))
