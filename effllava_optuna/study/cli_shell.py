"""The verb that helps a shell: ``completion``."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

PROGRAM = "effllava-optuna"  # what pyproject.toml installs
_VARIABLE = "_EFFLLAVA_OPTUNA_COMPLETE"
_SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command()
@click.argument("shell", type=click.Choice(tuple(_SHELLS)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script by which a SHELL completes `effllava-optuna`, the same as this program.

    It completes verbs, options, files, and the names of studies in --storage.

    \b
    Example:
      eval "$(python -m effllava_optuna.study completion bash)"
    """
    complete = _SHELLS[shell](context.find_root().command, {}, PROGRAM, _VARIABLE)
    click.echo(ShellComplete.source(complete))  # `BashComplete.source` runs bash for its version
