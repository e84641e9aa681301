"""The exceptions of effllava_optuna, with one base class.

.. code-block:: text

    EffllavaError                base class: a message and a hint
     +- ConfigError              a study file has an invalid key or value
     |   +- UserFunctionError    a function that it names failed or returned something invalid
     |   +- UnreachableError     no policy is as fast as it asks
     +- PolicyError              a policy, gene or space does not match its model structure
     +- ModelError               a checkpoint cannot be loaded, inspected or pruned
     |   +- ExportError          a checkpoint cannot be written, or does not reload as written
     +- TaskError                a dataset row, split or prompt cannot be used
     |   +- LeakError            a search was given validation or test samples
     +- StudyError               a database, study or artifact is missing, damaged or foreign

The command line prints ``message`` and ``hint`` on one line and exits with code 2.
"""

from __future__ import annotations

import re
import reprlib

from effllava_optuna.passwords import hide_passwords

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 2000  # characters of a message, whatever values it has
_LONGEST_MESSAGE = 400  # characters of the message of another library
_LONGEST_VALUE = 120  # characters of a value in a message


class EffllavaError(Exception):
    """Base class of the exceptions of this package.

    Args:
        message: What is wrong, with the place and the value, as one sentence.
        hint: What to do about it, as one sentence.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = _cut(_one_line(hide_passwords(message)), _LONGEST)
        self.hint = _cut(_one_line(hide_passwords(hint)), _LONGEST)
        super().__init__(f"{self.message} {self.hint}".rstrip())


class ConfigError(EffllavaError):
    """A study file has an invalid key or value."""


class UserFunctionError(ConfigError):
    """A function that a study file names failed, or returned what cannot be used."""


class UnreachableError(ConfigError):
    """No policy is as fast as a study file asks."""


class PolicyError(EffllavaError):
    """A policy, gene or space does not match its model structure."""


class ModelError(EffllavaError):
    """A checkpoint cannot be loaded, inspected or pruned."""


class ExportError(ModelError):
    """A checkpoint cannot be written, or does not reload as it was written."""


class TaskError(EffllavaError):
    """A dataset row, split or prompt cannot be used."""


class LeakError(TaskError):
    """A search was given validation or test samples."""


class StudyError(EffllavaError):
    """A database, study or artifact is missing, damaged or from another model or version."""


def shorten(value: object) -> str:
    """Return the representation of a value of any size for a message.

    Example:
        >>> shorten({"bytes": bytes(4_000_000), "path": None})
        "{'bytes': <4000000 bytes>, 'path': None}"
        >>> len(shorten([["a" * 4_000_000] * 1000] * 1000))
        120
    """
    return _cut(_SHORT.repr(value), _LONGEST_VALUE)


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()  # takes no limits before Python 3.12
        self.maxstring = self.maxother = self.maxlong = _LONGEST_VALUE

    def repr_bytes(self, value: bytes, level: int) -> str:
        return f"<{len(value)} bytes>"

    repr_bytearray = repr_bytes


_SHORT = _ShortRepr()


def _one_line(text: str) -> str:
    """Join the lines of a text; those of a value or of another exception are not meant."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _cut(text: str, length: int) -> str:
    """Replace the middle of a long text by dots."""
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[: length - 3 - half]}...{text[-half:]}"


def describe(error: BaseException) -> str:
    r"""Return the type of an error and the first line of its message, without a final mark.

    A sentence that goes on in the next line is not cut. Colour codes of terminals are removed,
    and the middle of a long message, such as a list of all names, is left out.

    Example:
        >>> describe(ValueError("\n no such file: \n a.txt"))
        'ValueError: no such file: a.txt'
        >>> describe(ImportError("A package is not found. See the\npage of it.\nhttp"))
        'ImportError: A package is not found. See the page of it'
        >>> describe(ValueError("\x1b[96mstep 1\x1b[0m failed"))
        'ValueError: step 1 failed'
        >>> describe(ValueError())
        'ValueError: no message'
    """
    try:
        message = str(error)
    except Exception:  # of a class whose text fails
        message = ""
    text = _COLOUR.sub("", message).strip()
    first, *others = [line.strip() for line in text.splitlines()] or ["no message"]
    for line in filter(None, others):
        if not (first.endswith(":") or (line[:1].islower() and first[-1] not in ".!?")):
            break
        first += f" {line}"
    return f"{type(error).__name__}: {_cut(first.rstrip('.:,'), _LONGEST_MESSAGE)}"
