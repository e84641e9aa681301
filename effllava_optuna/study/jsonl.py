"""A file of records, one a line, to which a process appends and with which another one goes on."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Generic, Protocol, TypeVar

from effllava_optuna.errors import StudyError
from effllava_optuna.files import write_atomically, write_errors_as

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path


class Record(Protocol):
    """A dataclass with an id."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str:
        """Identify the record within its file."""


R = TypeVar("R", bound=Record)


class JsonLines(Generic[R]):
    """Records in an append-only file, which a kill at any point does not damage.

    The first line is ``{"about": ...}``, every other line one record. A last line that a kill cut
    short is removed.

    Args:
        path: The file; it and its directory are created if missing.
        kind: Makes a record from its fields: a dataclass.
        about: What the records depend on, as JSON values.
        overwrite: Remove the records that the file has.

    Attributes:
        path: The file.
        records: By id; of two with the same id the later one.

    Raises:
        StudyError: The file has another ``about``, is of another kind, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        kind: Callable[..., R],
        about: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self.records: dict[str, R] = {}
        header = _lines([{"about": dict(about)}])
        with write_errors_as(StudyError, path, hint="Give another --out."):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                write_atomically(path, header, overwrite=False)
            with path.open("r+b") as file:
                first = file.readline()
                if first:
                    self._check_header(first, None if overwrite else about)
                if not overwrite:
                    self._read(file, kind)
            if overwrite or not first:
                write_atomically(path, header)

    def _check_header(self, line: bytes, about: Mapping[str, Any] | None) -> None:
        with self._explained(1):
            old = json.loads(line.rpartition(b"\n")[0])["about"]
        if about is None or old == about:
            return
        changed = [key for key in about if not isinstance(old, dict) or old.get(key) != about[key]]
        raise StudyError(
            f"{self.path} is about something else: {', '.join(changed)} changed.",
            hint="Give another --out, or --overwrite.",
        )

    def _read(self, file: BinaryIO, kind: Callable[..., R]) -> None:
        """Read the records behind the header, and remove a line that a kill cut short."""
        length = file.tell()
        for number, line in enumerate(iter(file.readline, b""), 2):
            if not line.endswith(b"\n"):
                file.truncate(length)
                return
            with self._explained(number):
                record = kind(**json.loads(line))
                self.records[record.id] = record
            length += len(line)

    @contextmanager
    def _explained(self, number: int) -> Iterator[None]:
        """Refuse a line that does not hold what it should."""
        try:
            yield
        except (ValueError, TypeError, KeyError) as error:
            raise StudyError(
                f"{self.path}: line {number} is not a record.",
                hint="Remove the file, or give another --out.",
            ) from error

    def append(self, records: Sequence[R]) -> None:
        """Add records; they are on disk when this returns.

        Raises:
            StudyError: They cannot be written.
        """
        hint = "Make room; the same command goes on where it stopped."
        with write_errors_as(StudyError, self.path, hint=hint), self.path.open("ab") as file:
            file.write(_lines([asdict(record) for record in records]))
            file.flush()
            os.fsync(file.fileno())
        self.records |= {record.id: record for record in records}


def _lines(documents: Sequence[Mapping[str, Any]]) -> bytes:
    lines = [f"{json.dumps(document, ensure_ascii=False)}\n" for document in documents]
    return "".join(lines).encode("utf-8", errors="replace")
