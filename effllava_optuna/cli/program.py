"""The program ``effllava-optuna``: its commands, the options of all, and how it ends.

A command imports what it needs when it runs, so that help and completion take no time.
"""

from __future__ import annotations

import logging
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from effllava_optuna import __version__
from effllava_optuna.cli import PROGRAM
from effllava_optuna.cli.commands import (
    doctor_command,
    evaluate_command,
    model_commands,
    report_commands,
    study_commands,
    study_file_commands,
)
from effllava_optuna.cli.error_handling import (
    EXIT_ERROR,
    one_line,
    one_line_errors,
    usage_error_line,
)
from effllava_optuna.cli.options import verbosity_options
from effllava_optuna.cli.output import print_line, protected_output
from effllava_optuna.logging import set_verbosity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_EXIT_INTERRUPTED = 130
_RENAMED_COMMANDS = {"anatomy": "inspect"}
_COMPLETION_VARIABLE = "_EFFLLAVA_OPTUNA_COMPLETE"
_SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


class CommandGroup(click.Group):
    """Commands with ``-q``, ``-v`` and ``--log-file``, whose errors are one line."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += verbosity_options()

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, its verbosity options and its error handling."""
        cmd.params += verbosity_options()
        if cmd.callback is not None:
            callback: Callable[..., None] = cmd.callback
            cmd.callback = one_line_errors(callback)
        super().add_command(cmd, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that a command line names."""
        if args[0] in _RENAMED_COMMANDS:
            new_name = _RENAMED_COMMANDS[args[0]]
            ctx.fail(f"No such command {args[0]!r}. Did you mean {new_name!r}?")
        return super().resolve_command(ctx, args)

    def main(  # type: ignore[override]  # click has one overload for each `standalone_mode`
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line; see `click.Command.main`."""
        set_verbosity(logging.INFO)
        words = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(words, prog_name, standalone_mode=False, **extra)
        with protected_output() as output:
            code = self._exit_code(words, prog_name, **extra)
            sys.stdout.flush()
            if output.error is not None:
                reason = output.error.strerror or output.error
                print_line(
                    f"The output could not be printed: {reason}. What the command stores is "
                    "stored. Print to another file or terminal.",
                    stderr=True,
                )
                code = code or EXIT_ERROR
        sys.exit(code)

    def _exit_code(self, words: list[str], prog_name: str | None, **extra: Any) -> int:
        """Run a command line, print its error if it has one, and return the exit code."""
        try:
            code = super().main(words, prog_name, standalone_mode=False, **extra)
        except click.ClickException as error:
            print_line(usage_error_line(error, words), stderr=True)
            return EXIT_ERROR
        except click.Abort:
            command = one_line(shlex.join([PROGRAM, *words]))
            print_line(f"Stopped. Nothing is lost; continue with: {command}", stderr=True)
            return _EXIT_INTERRUPTED
        except SystemExit as end:
            code = end.code
        return code if isinstance(code, int) else 0


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
)
@click.version_option(__version__, prog_name=PROGRAM)
def main() -> None:
    """Search structured-pruning policies for vision-language models.

    \b
    Example:
      effllava-optuna run studies/quickstart.toml
    """


@click.command()
@click.argument("shell", type=click.Choice(tuple(_SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes `effllava-optuna` in a SHELL.

    It completes commands, options, files, and the names of studies in --storage.

    \b
    Example:
      eval "$(effllava-optuna completion bash)"
    """
    complete = _SHELLS[shell](context.find_root().command, {}, PROGRAM, _COMPLETION_VARIABLE)
    # Not `complete.source()`: that of bash runs bash for its version.
    print_line(ShellComplete.source(complete))


for _command in (
    study_file_commands.init,
    study_file_commands.check,
    study_commands.run,
    study_commands.allocate,
    study_commands.resume,
    study_commands.worker,
    study_commands.dashboard,
    report_commands.status,
    report_commands.report,
    report_commands.pick,
    model_commands.inspect,
    model_commands.export_,
    model_commands.recover,
    evaluate_command.evaluate,
    doctor_command.doctor,
    completion,
):
    main.add_command(_command)
