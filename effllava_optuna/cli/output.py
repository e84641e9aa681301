"""Where results are printed: on the terminal, or as JSON for programs.

Printing never decides what a command stores: see `protected_output`.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import select
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.logging import get_verbosity

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TextIO

    from rich.console import Console

_PAGE_WIDTH = 140  # characters, if the output is not a terminal
_STANDARD_STREAMS = 3  # stdin, stdout, stderr: the descriptors 0, 1, 2


@dataclass
class OutputState:
    """What became of the standard output of a command.

    Attributes:
        error: The first error of a write; None if all was printed, or the reader has stopped.
    """

    error: OSError | None = None


class _LossyFile(io.RawIOBase):
    """A file to print to: what the system does not accept is dropped, and the error kept.

    Args:
        file: Binary file that is written to; it stays open.
        state: Keeps the error.
    """

    def __init__(self, file: Any, state: OutputState) -> None:
        self._file, self._state = file, state

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return bool(self._file.isatty())

    def fileno(self) -> int:
        return int(self._file.fileno())

    def write(self, data: Any) -> int:
        """Write all of ``data``, or drop what is left of it."""
        rest = memoryview(data)
        try:
            while rest:
                written = self._file.write(rest)
                if written is None:  # a pipe that does not wait is full
                    select.select([], [self._file], [])
                else:
                    rest = rest[written:]
        except OSError as error:
            if error.errno != errno.EPIPE and self._state.error is None:
                self._state.error = error
        return len(data)


class _LossyText(io.TextIOWrapper):
    """A stream to print to that a function of the user cannot close."""

    def close(self) -> None:
        """Write what is left, and stay open."""
        self.flush()


@contextmanager
def protected_output() -> Iterator[OutputState]:
    """Replace the standard streams by ones that no print can fail on, and restore them on exit.

    Characters that the encoding of a stream lacks are escaped, as Python does on its standard
    error stream. What cannot be written, because the disk is full, the reader has stopped or the
    stream is closed, is dropped. The rest of the package, a user's functions and libraries may
    print without a thought of this.

    Yields:
        The state of the standard output.
    """
    state, streams = OutputState(), (sys.stdout, sys.stderr)
    if None in (sys.stdin, *streams):
        _open_closed_descriptors()
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        sys.stdout = _lossy(sys.stdout or nowhere, state)
        sys.stderr = _lossy(sys.stderr or nowhere, OutputState())
        try:
            yield state
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            sys.stdout, sys.stderr = streams


def _lossy(stream: TextIO, state: OutputState) -> TextIO:
    """Return a stream to the file of another one."""
    buffer: Any = getattr(stream, "buffer", None)
    if buffer is None:  # a notebook or an `io.StringIO`, which accept every character
        return stream
    stream.flush()
    return _LossyText(
        io.BufferedWriter(_LossyFile(getattr(buffer, "raw", buffer), state)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


def _open_closed_descriptors() -> None:
    """Open the null device as each standard stream that the process was started without.

    Otherwise the next file to be opened, perhaps the journal of a study, would become the
    standard output of the C libraries and of every process that is started.
    """
    for descriptor in range(_STANDARD_STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            lowest_free, inheritable = os.open(os.devnull, os.O_RDWR), True
            os.set_inheritable(lowest_free, inheritable)


def console(*, stderr: bool = False) -> Console:
    """Return the terminal, or a wide page if the output is redirected.

    Text is printed as it is: square brackets and colons of a name are no markup.

    ``stderr`` selects the error stream, for commands whose output a program reads.
    """
    from rich.console import Console

    terminal = Console(stderr=stderr, markup=False, emoji=False)
    if terminal.is_terminal:
        return terminal
    return Console(width=_PAGE_WIDTH, stderr=stderr, markup=False, emoji=False)


def print_line(text: str, *, stderr: bool = False) -> None:
    """Print a line as it is, however long it is.

    In place of `click.echo`, which writes UTF-8 to a stream that is ASCII.
    """
    stream = sys.stderr if stderr else sys.stdout
    stream.write(f"{text}\n")
    stream.flush()


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document as JSON."""
    print_line(json.dumps(document, indent=2))


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
