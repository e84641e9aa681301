"""Log messages of effllava_optuna, under one root logger, as Optuna has its own.

What is logged goes to the standard error stream, from ``INFO`` up, until told otherwise:

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
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ROOT = "effllava_optuna"
_FORMAT = "[%(levelname)1.1s %(asctime)s] %(message)s"


class _Stderr(logging.StreamHandler[TextIO]):
    """Write to whatever the standard error stream is at the time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute there
        return sys.stderr


def _made() -> logging.Handler:
    handler = _Stderr()
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger(_ROOT)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
    return handler


_handler = _made()


def get_logger(name: str) -> logging.Logger:
    """Give the logger of a module, below our root.

    Args:
        name: ``__name__`` of the module.
    """
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def get_verbosity() -> int:
    """Give the least level that is shown, such as ``logging.INFO``."""
    return _handler.level or logging.getLogger(_ROOT).getEffectiveLevel()


def set_verbosity(level: int) -> None:
    """Show messages from ``level`` up, such as ``logging.WARNING``."""
    _handler.setLevel(logging.NOTSET)
    logging.getLogger(_ROOT).setLevel(level)


def disable_default_handler() -> None:
    """Write nothing to the standard error stream."""
    logging.getLogger(_ROOT).removeHandler(_handler)


def enable_default_handler() -> None:
    """Write to the standard error stream again."""
    logging.getLogger(_ROOT).addHandler(_handler)


def disable_propagation() -> None:
    """Keep messages from the handlers of Python's root logger; so it is from the start."""
    logging.getLogger(_ROOT).propagate = False


def enable_propagation() -> None:
    """Hand messages to the handlers of Python's root logger, too."""
    logging.getLogger(_ROOT).propagate = True


@contextmanager
def written_to(file: Path) -> Iterator[None]:
    """Write everything to a file, too, whatever is shown; it is made by the first message."""
    root, shown = logging.getLogger(_ROOT), get_verbosity()
    handler = logging.FileHandler(file, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(_FORMAT))
    root.addHandler(handler)
    _handler.setLevel(shown)
    root.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        set_verbosity(shown)
        root.removeHandler(handler)
        handler.close()
