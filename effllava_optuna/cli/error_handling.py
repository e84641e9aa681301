"""Show errors as one line, with exit code 2."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeGuard

import click

from effllava_optuna.cli import PROGRAM
from effllava_optuna.cli.output import print_line
from effllava_optuna.errors import EffllavaError
from effllava_optuna.logging import get_logger
from effllava_optuna.passwords import hide_passwords

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXIT_ERROR = 2
_logger = get_logger(__name__)


def one_line_errors(function: Callable[..., None]) -> Callable[..., None]:
    """Show the errors of this package and of databases as one line, and exit with code 2."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> None:
        try:
            function(*arguments, **options)
        except EffllavaError as error:
            _exit_with(str(error), error)
        except Exception as error:
            if not _is_database_error(error):
                raise
            _exit_with(_database_message(error), error)

    return wrapped


def usage_error_line(error: click.ClickException, words: Sequence[str]) -> str:
    """Return the line that shows an error of click in the command line ``words``."""
    message = error.format_message() if words else "No command is given."
    message = message if message.endswith((".", "?", "?)")) else f"{message}."
    if isinstance(error, click.UsageError):
        context = error.ctx
        verb = "" if context is None or context.parent is None else f" {context.info_name}"
        message += f" See: {PROGRAM}{verb} --help"
    return one_line(message)


def one_line(message: str) -> str:
    """Return a message without line breaks, passwords and characters that cannot be printed."""
    shown = hide_passwords(message)
    printable = "".join(char if char.isprintable() else " " for char in shown)
    return " ".join(printable.split())


def _database_message(error: Exception) -> str:
    """Return what happened to a database, and what to do about it."""
    from effllava_optuna.storage.backends.database_errors import cure_of

    if isinstance(error, KeyError):
        return "The study was deleted while this command worked on it. Start it again with `run`."
    if _is_rpc_error(error):
        cause = error.details()
    else:
        cause = getattr(error.__cause__ or error, "orig", None) or error
    return f"The database failed: {cause}. {cure_of(str(cause))}"


def _is_database_error(error: Exception) -> bool:
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, KeyError):
        missing = error.args == ("Record does not exist.",)
        return missing or _is_rpc_error(error.__cause__)  # the client of Optuna's proxy says less
    return isinstance(error, (StorageInternalError, SQLAlchemyError)) or _is_rpc_error(error)


def _is_rpc_error(error: object) -> TypeGuard[Any]:
    """Return whether an error is one of gRPC, which need not be installed."""
    return any(
        (each.__module__, each.__name__) == ("grpc", "RpcError") for each in type(error).__mro__
    )


def _exit_with(message: str, error: Exception) -> None:
    _logger.debug("Traceback of the error:", exc_info=error)
    print_line(one_line(message), stderr=True)
    raise SystemExit(EXIT_ERROR) from error
