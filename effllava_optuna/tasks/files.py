"""Read the files that a dataset is made of: parquet, jsonl, json and csv."""

from __future__ import annotations

import csv
import json
import re
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import TaskError

if TYPE_CHECKING:
    from pathlib import Path

KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
"""By suffix, what `datasets` calls a kind of file."""

_SHARD = re.compile(r"-\d+-of-\d+(-[0-9a-f]{16})?$")
_MORE = "\0more"  # the column of cells that no column has a name for


def files_of(place: Path) -> list[Path]:
    """Give the files of a directory that hold rows, in order.

    Where it has none, those of its folder ``data``, which is where repositories of the hub have
    them.
    """
    for folder in (place, place / "data"):
        if folder.is_dir():
            found = sorted(file for file in folder.iterdir() if file.suffix in KINDS)
            if found:
                return found
    return []


def split_of(file: Path) -> str:
    """Name the split of a file, which may be one of several shards."""
    return _SHARD.sub("", file.stem)


def empty(place: Path, split: str) -> TaskError:
    """Make the error of a split without rows."""
    return TaskError(f"{place}, split {split!r}, is empty.", hint="Give a split with rows.")


def read_file(file: Path) -> Any:
    """Read a file as a dataset.

    Raises:
        TaskError: It is of no known kind or empty, or a line cannot be used; whatever else
            `datasets` raises comes as it is.
    """
    import datasets

    kind = KINDS.get(file.suffix)
    if kind is None:
        raise TaskError(
            f"task.data = {str(file)!r} is of no known kind.",
            hint=f"Use one of {', '.join(KINDS)}.",
        )
    if kind == "csv":
        return _from_csv(file)
    if file.suffix == ".jsonl":
        _refuse_lines(file)
    try:
        table = datasets.load_dataset(kind, data_files=str(file), split="train")
    except ValueError as error:
        if "corresponds to no data" in str(error):
            raise empty(file, split_of(file)) from error
        raise
    if kind == "json" and any("timestamp" in str(f) for f in table.features.values()):
        return datasets.Dataset.from_list(
            _documents(file)
        )  # pyarrow takes '2020-01-01' for a date
    return table


def _documents(file: Path) -> list[Any]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        return list(json.loads(text))
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _from_csv(file: Path) -> Any:
    """Read cells as the texts that they are: '007' is no number, and 'None' is an answer."""
    import datasets

    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, restkey=_MORE)
        rows = []
        for row in reader:
            if _MORE in row or None in row.values():
                raise TaskError(
                    f"{file}: line {reader.line_num} has not as many cells as the first line, "
                    f"which names {len(reader.fieldnames or ())} columns.",
                    hint="Put cells with commas into quotes.",
                )
            rows.append(row)
    if not rows:
        raise empty(file, split_of(file))
    return datasets.Dataset.from_list(rows)


def _refuse_lines(file: Path) -> None:
    """Name the first line that is no UTF-8 or no JSON object; pyarrow would tell a byte."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                if line.strip() and not isinstance(json.loads(line.decode("utf-8")), dict):
                    raise ValueError("is no object")
            except ValueError as error:
                what = "is no UTF-8" if isinstance(error, UnicodeDecodeError) else "is no JSON"
                raise TaskError(
                    f"{file}: line {number} {what}: {error}.", hint="Mend or remove that line."
                ) from error
    if not file.stat().st_size:
        raise empty(file, split_of(file))
