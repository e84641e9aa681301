"""The exceptions of effllava_optuna, with one base class.

.. code-block:: text

    EffllavaError                base class: a message and a hint
     +- ConfigError              a study file has an invalid key or value
     +- PolicyError              a policy, gene or space does not match its model structure
     +- ModelError               a checkpoint cannot be loaded, inspected or pruned
     |   +- ExportError          a checkpoint cannot be written, or does not reload as written
     +- TaskError                a dataset row, split or prompt cannot be used
     |   +- LeakError            a search was given validation or test samples
     +- StudyError               a database, study or artifact is missing, damaged or foreign

The command line prints ``message`` and ``hint`` on one line and exits with code 2.
"""

from __future__ import annotations


class EffllavaError(Exception):
    """Base class of the exceptions of this package.

    Args:
        message: What is wrong, with the place and the value, as one sentence.
        hint: What to do about it, as one sentence.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".rstrip())
        self.message = message
        self.hint = hint


class ConfigError(EffllavaError):
    """A study file has an invalid key or value."""


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


def describe(error: BaseException) -> str:
    r"""Return the type of an error and the first line of its message, without a final mark.

    Example:
        >>> describe(ValueError("\n no such file: \n a.txt"))
        'ValueError: no such file'
        >>> describe(ValueError())
        'ValueError: no message'
    """
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0].strip().rstrip('.:')}"
