"""Configure the root logger of effllava_optuna, with the functions that `optuna.logging` has.

By default, messages from level ``INFO`` up are written to the standard error stream:

>>> import logging
>>> set_verbosity(logging.WARNING)
>>> get_logger("effllava_optuna.example").isEnabledFor(logging.INFO)
False
>>> set_verbosity(logging.INFO)
>>> get_verbosity() == logging.INFO
True
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from effllava_optuna.passwords import hide_passwords

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ROOT = "effllava_optuna"
_FORMAT = "[%(levelname)1.1s %(asctime)s] %(message)s"


class _LogFileHandler(logging.FileHandler):
    """Write to a file; if that is not possible, show it once, and go on without the file."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, encoding="utf-8", errors="backslashreplace", delay=True)
        self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not self._failed:
                super().emit(record)
        except OSError as error:  # the file cannot be created
            self._show(error)

    def handleError(self, record: logging.LogRecord) -> None:
        """Show a write error; the base class would show the traceback of each."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._show(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        """Close the file; what could not be written to it is dropped."""
        with suppress(OSError):
            super().close()

    def _show(self, error: OSError) -> None:
        self._failed = True
        message = f"{self.baseFilename} cannot be written: {error.strerror or error}."
        get_logger(__name__).warning(message)


class _Formatter(logging.Formatter):
    """Format a message, and the traceback of its error, without the passwords of URLs."""

    def format(self, record: logging.LogRecord) -> str:
        return hide_passwords(super().format(record))


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Write to the present `sys.stderr`, which tests and notebooks replace."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _create_handler() -> logging.Handler:
    handler = _StderrHandler()
    handler.setFormatter(_Formatter(_FORMAT))
    root = logging.getLogger(_ROOT)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
    return handler


_handler = _create_handler()


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module, below the root logger of this package.

    Args:
        name: The module's ``__name__``.
    """
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def get_verbosity() -> int:
    """Return the lowest level that is shown, such as ``logging.INFO``."""
    return _handler.level or logging.getLogger(_ROOT).getEffectiveLevel()


def set_verbosity(level: int) -> None:
    """Show messages from ``level`` up, such as ``logging.WARNING``."""
    _handler.setLevel(logging.NOTSET)
    logging.getLogger(_ROOT).setLevel(level)


def disable_default_handler() -> None:
    """Stop writing to the standard error stream."""
    logging.getLogger(_ROOT).removeHandler(_handler)


def enable_default_handler() -> None:
    """Write to the standard error stream again."""
    logging.getLogger(_ROOT).addHandler(_handler)


def disable_propagation() -> None:
    """Do not pass messages to the handlers of Python's root logger; this is the default."""
    logging.getLogger(_ROOT).propagate = False


def enable_propagation() -> None:
    """Pass messages to the handlers of Python's root logger, too."""
    logging.getLogger(_ROOT).propagate = True


@contextmanager
def logging_to_file(file: Path) -> Iterator[None]:
    """Write messages of all levels to a file, too; the first message creates the file."""
    root, verbosity = logging.getLogger(_ROOT), get_verbosity()
    handler = _LogFileHandler(file)
    handler.setFormatter(_Formatter(_FORMAT))
    root.addHandler(handler)
    _handler.setLevel(verbosity)
    root.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        set_verbosity(verbosity)
        root.removeHandler(handler)
        handler.close()
