"""The files of a dataset: which ones have the rows of a split, and how each format is read."""

from __future__ import annotations

import codecs
import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING

from effllava_optuna.errors import TaskError
from effllava_optuna.files import read_text
from effllava_optuna.tasks.data.row_source import JoinedRows
from effllava_optuna.tasks.data.text_rows import read_csv, read_json, read_json_lines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from effllava_optuna.tasks.data.row_source import RowSource

FORMATS = (".parquet", ".jsonl", ".json", ".csv")
"""Suffixes of files with rows."""

_SHARD = re.compile(r"-(\d+)-of-(\d+)(-[0-9a-f]{16})?$")
_PEEKED = 4096  # bytes of a json file from which a list of rows is recognised


def list_splits(directory: Path) -> dict[str, list[Path]]:
    """Return the files with rows by the name of their split, both sorted.

    They are in the directory or in its directory ``data``, where repositories of the hub store
    them. Hidden files, and json files that are not lists of rows, such as the
    ``dataset_infos.json`` of a download from the hub, are left out.
    """
    files = defaultdict(list)
    for folder in (directory, directory / "data"):
        if folder.is_dir():
            for file in sorted(folder.iterdir()):
                if _has_rows(file):
                    files[split_name(file)].append(file)
    return dict(sorted(files.items()))


def split_name(file: Path) -> str:
    """Return the name of the split in a file, which may be one of several shards."""
    return _SHARD.sub("", file.stem)


def empty_split_error(path: Path, split: str) -> TaskError:
    """Create the error for a split without rows."""
    return TaskError(f"{path}, split {split!r}, is empty.", hint="Use a split with rows.")


def read_row_file(file: Path) -> RowSource:
    """Read one file.

    Raises:
        TaskError: The format is unknown, the file is empty, or a part of it cannot be parsed.
        OSError: The file cannot be read.
        pyarrow.ArrowException: A parquet file cannot be read.
    """
    rows = _read_format(file)
    if not len(rows):
        raise TaskError(f"{file} has no rows.", hint="Use a file with rows.")
    return rows


def read_split_files(directory: Path, split: str, files: Sequence[Path]) -> RowSource:
    """Read the files of one split, which are one file or the shards of one.

    Args:
        directory: The directory of the dataset, for messages.
        split: Name of the split.
        files: The files of `list_splits`.

    Raises:
        TaskError: A shard is missing, or the files are not shards of one file; see also
            `read_row_file`.
        OSError: See `read_row_file`.
        pyarrow.ArrowException: See `read_row_file`.
    """
    if len(files) == 1 and not _SHARD.search(files[0].stem):
        return read_row_file(files[0])
    shards = [_SHARD.search(file.stem) for file in files]
    kinds = {
        (file.parent, file.suffix, shard and shard[2])
        for file, shard in zip(files, shards, strict=True)
    }
    names = [str(file.relative_to(directory)) for file in files]
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if len(kinds) > 1 or None in shards:
        raise TaskError(
            f"{directory}: split {split!r} has several files: {listed}.",
            hint="Keep one of them, or set task.data to it.",
        )
    numbers = sorted(int(shard[1]) for shard in shards if shard)
    count = int(shards[0][2]) if shards[0] else 0
    if numbers != list(range(count)):
        raise TaskError(
            f"{directory}: split {split!r} should have shards 0 to {count - 1}, but has {listed}.",
            hint="Download the dataset again.",
        )
    return JoinedRows([_read_format(file) for file in files])


def _read_format(file: Path) -> RowSource:
    match file.suffix.lower():
        case ".parquet":
            from effllava_optuna.tasks.data.arrow_rows import ParquetRows

            return ParquetRows(file)
        case ".jsonl":
            return read_json_lines(file)
        case ".json":
            return read_json(file)
        case ".csv":
            return read_csv(file)
    raise TaskError(
        f"task.data = {str(file)!r} has an unknown format.",
        hint=f"Use one of {', '.join(FORMATS)}.",
    )


def _has_rows(file: Path) -> bool:
    """Return whether a file in a directory is one with rows, and not a side file."""
    suffix = file.suffix.lower()
    if file.name.startswith((".", "__")) or suffix not in FORMATS or not file.is_file():
        return False
    if suffix != ".json":
        return True
    with file.open("rb") as opened:
        start = opened.read(_PEEKED).removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        return start[1:].lstrip()[:1] in {
            b"{",
            b"]",
            b"",
            b"\0",
        }  # UTF-16 is refused by the reader
    try:
        json.loads(read_text(file))
    except (ValueError, RecursionError):
        return True  # rows on lines, or a fault, which its reader names
    return False
