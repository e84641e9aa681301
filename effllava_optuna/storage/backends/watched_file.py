"""The file of a storage while a process uses it."""

from __future__ import annotations

from pathlib import Path

from effllava_optuna.errors import StudyError


class WatchedFile:
    """A file that must stay what it is: a process goes on to write into one that was removed.

    Nothing of that would be on the disk when the process ends (Optuna issue 2722).

    Args:
        path: The file, which exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # the working directory may change
        self._identity = self._read_identity()

    def _read_identity(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def check(self) -> None:
        """Check that the path still names the file.

        Raises:
            StudyError: The file was removed, moved or replaced.
        """
        identity = self._read_identity()
        if identity == self._identity:
            return
        happened = "removed or moved" if identity is None else "replaced by another file"
        raise StudyError(
            f"{self.path} was {happened} while this process used it.",
            hint="Put the file back and continue with `resume`, or start again with `run`.",
        )
