"""Answers on disk: a line each, so that an evaluation goes on where it was stopped."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import StudyError
from effllava_optuna.objectives import Answered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class Answers:
    """A file of answers: a line that says what was asked of what, then a line an answer.

    Args:
        path: Of the file, made if need be.
        about: What the answers depend on.
        overwrite: Forget what the file has.

    Raises:
        StudyError: The file has answers about something else, or is no file of answers, or
            cannot be written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        self.known: dict[str, Answered] = {}
        try:
            if overwrite and path.is_file():
                self._forget()
            whole = self._read(about) if path.is_file() else 0
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                if whole < file.tell():
                    file.truncate(whole)  # a line that a kill cut short
                if not whole:
                    _write(file, [{"about": dict(about)}])
        except OSError as error:
            raise StudyError(
                f"{path}: answers cannot be kept: {error}.", hint="Give another --out."
            ) from error

    def _read(self, about: Mapping[str, Any]) -> int:
        """Read what is there; give the length of its whole lines."""
        whole = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines):
                try:
                    document = json.loads(line.decode("utf-8"))
                    # Two that began at the same time have both said what they are about.
                    if number and "about" not in document:
                        self.known[document["id"]] = Answered(**document)
                    elif document["about"] != about:
                        raise self._foreign(document["about"], about)
                except (ValueError, TypeError, KeyError) as error:
                    if not line.endswith(b"\n"):
                        break
                    raise self._no_answer(number + 1) from error
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
        return whole

    def _forget(self) -> None:
        """Remove the file, but none that is something else."""
        with self.path.open("rb") as lines:
            first = lines.readline()
        if first.endswith(b"\n") and not first.startswith(b'{"about":'):
            raise self._no_answer(1)
        self.path.unlink()

    def _no_answer(self, line: int) -> StudyError:
        return StudyError(
            f"{self.path}: line {line} is no answer.",
            hint="Remove the file, or give another --out.",
        )

    def _foreign(self, old: Any, new: Mapping[str, Any]) -> StudyError:
        changed = [key for key in new if not isinstance(old, dict) or old.get(key) != new[key]]
        return StudyError(
            f"{self.path} has answers about something else: {', '.join(changed)} changed.",
            hint="Give another --out, or --overwrite.",
        )

    def keep(self, answered: Sequence[Answered]) -> None:
        """Add answers; they are on disk when this returns.

        Raises:
            StudyError: They cannot be written.
        """
        try:
            with self.path.open("ab") as file:
                _write(file, [asdict(answer) for answer in answered])
        except OSError as error:
            raise StudyError(
                f"{self.path}: answers cannot be kept: {error}.",
                hint="Make room; the same command goes on where it stopped.",
            ) from error
        self.known |= {answer.id: answer for answer in answered}


def _write(file: Any, documents: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(document, ensure_ascii=False) for document in documents]
    file.write("".join(f"{line}\n" for line in lines).encode("utf-8", errors="replace"))
    file.flush()
    os.fsync(file.fileno())
