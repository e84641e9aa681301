"""The verb that helps a shell: ``completion``."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

PROGRAM = "effllava-optuna"  # what pyproject.toml installs
_VARIABLE = "_EFFLLAVA_OPTUNA_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script by which a SHELL completes `effllava-optuna`, the same as this program.

    It completes verbs, options, study files, the names of studies in --storage, and models.

    \b
    Example:
      eval "$(python -m effllava_optuna.study completion bash)"
    """
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"click cannot complete for {shell}.", context)
    # Not `found.source`, which runs bash to learn its version.
    click.echo(ShellComplete.source(found(context.find_root().command, {}, PROGRAM, _VARIABLE)))
