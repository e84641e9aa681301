"""An append-only file of records, one per line, that can be continued after a kill."""

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
        """Return the id, which is unique within a file."""


R = TypeVar("R", bound=Record)


class RecordFile(Generic[R]):
    """Records in a file of JSON lines, which a kill at any point does not damage.

    The first line is ``{"about": ...}``, each other line one record. An incomplete last line,
    which a kill leaves, is removed.

    Args:
        path: The file; it and its directory are created if necessary.
        record_type: Creates a record from its fields: a dataclass.
        about: What the records depend on, as JSON values.
        overwrite: Whether to remove the records that the file has.

    Attributes:
        path: The file.
        records: The records by id; of two with the same id the later one.

    Raises:
        StudyError: The file has another ``about``, has other content, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        record_type: Callable[..., R],
        about: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self.records: dict[str, R] = {}
        header = _to_lines([{"about": dict(about)}])
        with write_errors_as(StudyError, path, hint="Use another --out."):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                write_atomically(path, header, overwrite=False)
            with path.open("r+b") as file:
                first_line = file.readline()
                if first_line:
                    self._check_header(first_line, None if overwrite else about)
                if not overwrite:
                    self._read(file, record_type)
            if overwrite or not first_line:
                write_atomically(path, header)

    def _check_header(self, line: bytes, about: Mapping[str, Any] | None) -> None:
        with self._line_errors(1):
            stored = json.loads(line.rpartition(b"\n")[0])["about"]
        if about is None or stored == about:
            return
        changed = [
            key for key in about if not isinstance(stored, dict) or stored.get(key) != about[key]
        ]
        raise StudyError(
            f"{self.path} has results of another evaluation: {', '.join(changed)} changed.",
            hint="Use another --out, or --overwrite.",
        )

    def _read(self, file: BinaryIO, record_type: Callable[..., R]) -> None:
        """Read the records after the header, and remove an incomplete last line."""
        length = file.tell()
        for number, line in enumerate(iter(file.readline, b""), 2):
            if not line.endswith(b"\n"):
                file.truncate(length)
                return
            with self._line_errors(number):
                record = record_type(**json.loads(line))
                self.records[record.id] = record
            length += len(line)

    @contextmanager
    def _line_errors(self, number: int) -> Iterator[None]:
        """Raise a `StudyError` that names the line if it has other content."""
        try:
            yield
        except (ValueError, TypeError, KeyError) as error:
            raise StudyError(
                f"{self.path}: line {number} is not a record.",
                hint="Remove the file, or use another --out.",
            ) from error

    def append(self, records: Sequence[R]) -> None:
        """Append records; they are on disk when this returns.

        Raises:
            StudyError: They cannot be written.
        """
        hint = "Free disk space, then repeat the command: it continues where it stopped."
        with write_errors_as(StudyError, self.path, hint=hint), self.path.open("ab") as file:
            file.write(_to_lines([asdict(record) for record in records]))
            file.flush()
            os.fsync(file.fileno())
        self.records |= {record.id: record for record in records}


def _to_lines(documents: Sequence[Mapping[str, Any]]) -> bytes:
    lines = [f"{json.dumps(document, ensure_ascii=False)}\n" for document in documents]
    return "".join(lines).encode("utf-8", errors="replace")
