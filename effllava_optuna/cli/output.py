"""Where results are printed: on the terminal, or as JSON for programs."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

import click

from effllava_optuna.logging import get_verbosity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

_PAGE_WIDTH = 140  # characters, if the output is not a terminal


def console(*, stderr: bool = False) -> Console:
    """Return the terminal, or a wide page if the output is redirected.

    ``stderr`` selects the error stream, for commands whose output a program reads.
    """
    from rich.console import Console

    terminal = Console(stderr=stderr)
    return terminal if terminal.is_terminal else Console(width=_PAGE_WIDTH, stderr=stderr)


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document as JSON."""
    click.echo(json.dumps(document, indent=2))


def quiet_optuna() -> None:
    """Show Optuna's own messages only with ``--verbose``."""
    import optuna

    verbose = get_verbosity() <= logging.DEBUG
    optuna.logging.set_verbosity(logging.INFO if verbose else logging.ERROR)


def quiet_transformers() -> None:
    """Hide the progress bars and warnings of transformers: they would break our progress bar."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
