"""Reading of the files of a dataset: parquet, jsonl, json and csv."""

from __future__ import annotations

import csv
import json
import re
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import TaskError

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
"""The name of a format in `datasets`, by suffix."""

_SHARD = re.compile(r"-\d+-of-\d+(-[0-9a-f]{16})?$")
_SURPLUS = "\0surplus"  # column of the cells beyond the header


def list_row_files(directory: Path) -> list[Path]:
    """Return the files with rows in a directory, sorted.

    If it has none, those in its directory ``data``, where repositories of the hub store them.
    """
    for folder in (directory, directory / "data"):
        if folder.is_dir():
            files = sorted(file for file in folder.iterdir() if file.suffix in FORMATS)
            if files:
                return files
    return []


def split_name(file: Path) -> str:
    """Return the name of the split in a file, which may be one of several shards."""
    return _SHARD.sub("", file.stem)


def empty_split_error(path: Path, split: str) -> TaskError:
    """Create the error for a split without rows."""
    return TaskError(f"{path}, split {split!r}, is empty.", hint="Use a split with rows.")


def read_row_file(file: Path) -> Any:
    """Read a file as a dataset.

    Raises:
        TaskError: The format is unknown, the file is empty, or a line cannot be parsed. Other
            errors of `datasets` are not converted.
    """
    import datasets

    name = FORMATS.get(file.suffix)
    if name is None:
        raise TaskError(
            f"task.data = {str(file)!r} has an unknown format.",
            hint=f"Use one of {', '.join(FORMATS)}.",
        )
    if name == "csv":
        return _read_csv(file)
    if file.suffix == ".jsonl":
        _check_json_lines(file)
    try:
        table = datasets.load_dataset(name, data_files=str(file), split="train")
    except ValueError as error:
        if "corresponds to no data" in str(error):
            raise empty_split_error(file, split_name(file)) from error
        raise
    if name == "json" and any("timestamp" in str(f) for f in table.features.values()):
        # pyarrow parses '2020-01-01' as a date
        return datasets.Dataset.from_list(_parse_json(file))
    return table


def _parse_json(file: Path) -> list[Any]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        return list(json.loads(text))
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _read_csv(file: Path) -> Any:
    """Read all cells as texts: '007' is not a number, and 'None' is an answer."""
    import datasets

    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, restkey=_SURPLUS)
        rows = []
        for row in reader:
            if _SURPLUS in row or None in row.values():
                raise TaskError(
                    f"{file}: line {reader.line_num} does not have as many cells as the first "
                    f"line, which names {len(reader.fieldnames or ())} columns.",
                    hint="Put cells with commas into quotes.",
                )
            rows.append(row)
    if not rows:
        raise empty_split_error(file, split_name(file))
    return datasets.Dataset.from_list(rows)


def _check_json_lines(file: Path) -> None:
    """Name the first line that is not a JSON object in UTF-8; pyarrow names a byte offset."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                if line.strip() and not isinstance(json.loads(line.decode("utf-8")), dict):
                    raise ValueError("it is not an object")
            except ValueError as error:
                encoding = "UTF-8" if isinstance(error, UnicodeDecodeError) else "JSON"
                raise TaskError(
                    f"{file}: line {number} is not valid {encoding}: {error}.",
                    hint="Fix or remove that line.",
                ) from error
    if not file.stat().st_size:
        raise empty_split_error(file, split_name(file))
