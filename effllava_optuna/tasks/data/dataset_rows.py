"""Reading of the rows of a dataset from the hub, a directory or a file.

Files are read by readers that keep the values of the file and have no cache. Images stay encoded
in their storage until they are opened. `datasets` takes most of a second to import, so that it is
imported only for datasets of the hub.
"""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import TaskError, describe, shorten
from effllava_optuna.files import expand_home, read_text
from effllava_optuna.tasks.data.row_files import (
    FORMATS,
    empty_split_error,
    list_splits,
    read_row_file,
    read_split_files,
)
from effllava_optuna.tasks.data.row_source import JoinedRows, place_of
from effllava_optuna.tasks.data.stored_image import StoredImage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from effllava_optuna.tasks.data.row_source import RowSource


_DATA_HINT = "Use a file, a directory, or a hub id such as lmms-lab/ScienceQA."


@dataclass(frozen=True, eq=False)
class DatasetRows:
    """The rows of one split of a dataset.

    Attributes:
        source: Where the rows were read from, for messages about all of them.
        rows: The rows, their images not decoded.
        directory: File names of images are relative to it.
    """

    source: str
    rows: RowSource
    directory: Path

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns."""
        return self.rows.columns

    def iterate(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Iterate over the rows with the given columns; a column that does not exist is None.

        Raises:
            TaskError: A value cannot be decoded.
        """
        try:
            yield from self.rows.iterate(columns)
        except Exception as error:  # those of pyarrow have no common class
            self._refuse_undecodable(columns)
            raise TaskError(
                f"{self.source} cannot be read: {describe(error)}.", hint="Write the file again."
            ) from error

    def _refuse_undecodable(self, columns: Sequence[str]) -> None:
        """Refuse the first value that cannot be decoded; rows are converted many at once."""
        for row in range(len(self)):
            for column in columns:
                try:
                    self.rows.value(row, column)
                except Exception as error:
                    raise TaskError(
                        f"{self.place(row)}: {column} cannot be read: {describe(error)}.",
                        hint="Write the file again, or remove the row.",
                    ) from error

    def place(self, row: int) -> str:
        """Return where a row is stored, for messages."""
        return place_of(self.rows, row, self.source)

    def iterate_images(self, column: str) -> Iterator[StoredImage]:
        """Iterate over the images of a column without reading them."""
        return (StoredImage(self.rows, row, column, self.directory) for row in range(len(self)))


def read_split(data: str, split: str, config: str | None = None) -> DatasetRows:
    """Read one split of a dataset.

    Args:
        data: A directory that ``save_to_disk`` wrote; a directory with a file for each split
            (``val.parquet``, ``test.jsonl``) in it or in its ``data``; one parquet, jsonl, json
            or csv file, for which ``split`` is ignored; or a hub id.
        split: Name of the split.
        config: Name of the configuration on the hub, or of its directory in a download; None:
            the only one.

    Raises:
        TaskError: The dataset or the split does not exist, or cannot be read.
    """
    path = _locate(data, config)
    with _read_errors(data):
        if path.is_file():
            return DatasetRows(data, read_row_file(path), path.parent)
        if path.is_dir():
            rows = _read_directory(path, split)
        else:
            _refuse_missing_path(data)
            rows = _read_hub(data, split, config)
    return DatasetRows(f"{data}, split {shorten(split)}", rows, path)


def split_names(data: str, config: str | None = None) -> list[str] | None:
    """Return the names of the splits of a dataset; None: it has only one, without a name.

    Raises:
        TaskError: The dataset does not exist, or cannot be read.
    """
    path = _locate(data, config)
    if path.is_file():
        return None
    with _read_errors(data):
        if path.is_dir():
            saved = _saved_splits(path)
            if saved is not None:
                return saved
            return None if _saved_files(path) is not None else list(list_splits(path))
        _refuse_missing_path(data)
        return _hub_splits(data, config)


def _locate(data: str, config: str | None) -> Path:
    """Return the path of a dataset, or of its configuration if it has a directory for each."""
    path = expand_home(data)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError) as error:  # the name is too long, or has a null character
        raise TaskError(
            f"task.data = {shorten(data)} cannot be read: "
            f"{getattr(error, 'strerror', None) or error}.",
            hint=_DATA_HINT,
        ) from error
    return path / config if config is not None and _is_directory(path / config) else path


def is_local(data: str) -> bool:
    """Return whether data is a path, existing or not, and no dataset of the hub."""
    names_path = data[:1] in {"/", ".", "~"} or Path(data).suffix.lower() in FORMATS
    return names_path or data.count("/") != 1 or _exists(expand_home(data))


def _exists(path: Path) -> bool:
    with suppress(OSError, ValueError):  # the name is too long, or has a null character
        return path.exists()
    return True  # a name that no hub has, which `_locate` refuses


def _refuse_missing_path(data: str) -> None:
    if is_local(data):
        raise TaskError(
            f"task.data = {shorten(data)}: there is no such file or directory.",
            hint=_DATA_HINT,
        )


def _read_directory(directory: Path, split: str) -> RowSource:
    saved = _saved_splits(directory)
    if saved is not None and split not in saved:
        raise _missing_split_error(directory, split, saved)
    folder = directory if saved is None else directory / split
    files = _saved_files(folder)
    if files is not None:
        from effllava_optuna.tasks.data.arrow_rows import map_arrow_file

        rows = JoinedRows([map_arrow_file(file) for file in files])
        if not len(rows):
            raise empty_split_error(directory, split)
        return rows
    if saved is not None:
        raise TaskError(f"{folder} has no state.json.", hint="Save or download the dataset again.")
    splits = list_splits(directory)
    if split not in splits:
        raise _missing_split_error(directory, split, list(splits))
    return read_split_files(directory, split, splits[split])


def _saved_splits(directory: Path) -> list[str] | None:
    """Return the names of the splits that `DatasetDict.save_to_disk` wrote; None: it did not."""
    file = directory / "dataset_dict.json"
    names = _read_document(file).get("splits")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged_document_error(file, "it names no splits")
    return names


def _saved_files(directory: Path) -> list[Path] | None:
    """Return the files that `Dataset.save_to_disk` wrote; None: it did not write here."""
    file = directory / "state.json"
    entries = _read_document(file).get("_data_files")
    if entries is None:
        return None
    try:
        return [directory / entry["filename"] for entry in entries]
    except (TypeError, KeyError) as error:
        raise _damaged_document_error(file, "it names no files") from error


def _read_document(file: Path) -> dict[str, Any]:
    """Return a JSON object; empty if there is no such file, or it is something else."""
    if not file.is_file():
        return {}
    try:
        document = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise _damaged_document_error(file, f"it is not valid JSON: {error}") from error
    return document if isinstance(document, dict) else {}


def _damaged_document_error(file: Path, reason: str) -> TaskError:
    return TaskError(f"{file}: {reason}.", hint="Save or download the dataset again.")


def _missing_split_error(directory: Path, split: str, names: list[str]) -> TaskError:
    listed = ", ".join(names) or "no parquet, jsonl, json or csv files"
    hint = "Use one of them in task.splits."
    if not names:
        folders = (folder for folder in sorted(directory.iterdir()) if folder.is_dir())
        with_rows = next((folder for folder in folders if list_splits(folder)), None)
        hint = f"Set task.data to {with_rows}." if with_rows else "Use another directory."
    return TaskError(
        f"task.data = {str(directory)!r} has no split {shorten(split)}; it has {listed}.",
        hint=hint,
    )


def _read_hub(data: str, split: str, config: str | None) -> RowSource:
    import datasets

    from effllava_optuna.tasks.data.arrow_rows import ArrowRows

    with _quiet_datasets():
        return ArrowRows(datasets.load_dataset(data, config, split=split).data.table)


def _hub_splits(data: str, config: str | None) -> list[str]:
    import datasets

    with _quiet_datasets():
        names: list[str] = datasets.get_dataset_split_names(data, config)
    return names


def _is_directory(path: Path) -> bool:
    with suppress(OSError, ValueError):  # the name is too long, or has a null character
        return path.is_dir()
    return False


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    import datasets

    verbosity = datasets.logging.get_verbosity()
    try:
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)


@contextmanager
def _read_errors(data: str) -> Iterator[None]:
    """Convert errors of pyarrow, `datasets` and the hub to one line; they have no common class."""
    try:
        yield
    except TaskError:
        raise
    except Exception as error:
        # `datasets` hides the cause behind a DatasetGenerationError.
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
        raise TaskError(
            f"task.data = {shorten(data)} cannot be read: {describe(cause or error)}.",
            hint="Check its name, files and splits; without a network, download it elsewhere "
            "(`hf download --repo-type dataset ID --local-dir DIR`, or save_to_disk) and set "
            "task.data = DIR.",
        ) from error
