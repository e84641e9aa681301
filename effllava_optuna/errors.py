"""The errors of effllava_optuna, all of one family.

.. code-block:: text

    EffllavaError                what went wrong, and what to do about it
     +- SpecError                a study file: file, key, value, cure
     +- PolicyError              a policy, gene or space that does not fit its anatomy
     +- ModelError               a checkpoint that cannot be loaded or understood
     |   +- ExportError          a checkpoint that does not come back as it was written
     +- TaskError                a dataset row or split that cannot be used
     |   +- LeakError            the search was handed samples that it must never see
     +- StudyError               a database, study or artifact that is missing, foreign or damaged

The command line prints ``message`` and ``hint`` on one line and exits with code 2.
"""

from __future__ import annotations


class EffllavaError(Exception):
    """Say what went wrong and how to mend it.

    Args:
        message: The place and the value, as one sentence.
        hint: The cure, as one sentence.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".rstrip())
        self.message = message
        self.hint = hint


class SpecError(EffllavaError):
    """A study file does not say a valid study."""


class PolicyError(EffllavaError):
    """A policy, gene or space does not fit its anatomy."""


class ModelError(EffllavaError):
    """A checkpoint cannot be loaded, understood or cut."""


class ExportError(ModelError):
    """An exported checkpoint does not come back as it was written."""


class TaskError(EffllavaError):
    """A dataset row, split or prompt cannot be used."""


class LeakError(TaskError):
    """A search was handed samples that it must never see."""


class StudyError(EffllavaError):
    """A database, study or artifact is missing, foreign or damaged."""


def describe(error: BaseException) -> str:
    r"""Return the type of an error and the first line of its message, without a mark at the end.

    Example:
        >>> describe(ValueError("\n no such file: \n a.txt"))
        'ValueError: no such file'
        >>> describe(ValueError())
        'ValueError: no message'
    """
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0].strip().rstrip('.:')}"
