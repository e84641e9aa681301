"""Reading of the rows of a dataset from the hub, a directory or a file.

Images stay encoded in their storage until they are opened. `datasets` takes most of a second to
import, so that it is imported only in the functions that read rows.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from effllava_optuna.errors import TaskError, describe
from effllava_optuna.files import expand_home
from effllava_optuna.tasks.data.row_files import (
    FORMATS,
    empty_split_error,
    list_row_files,
    read_row_file,
    split_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_NAME = 80  # characters of a file name in a message


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image in a row of a dataset, or in a file that the row names.

    Attributes:
        dataset: The dataset with the column of images, not decoded.
        row: Index of the row.
        column: Name of the column.
        directory: File names are relative to it, or to its directory ``images``.
    """

    dataset: Any
    row: int
    column: str
    directory: Path

    def read_bytes(self) -> bytes | None:
        """Return the encoded image; None if the row has none.

        Raises:
            OSError: The file cannot be read.
        """
        value = self.dataset[self.row][self.column]
        if isinstance(value, Mapping):
            if value.get("bytes") is not None:
                return bytes(value["bytes"])
            value = value.get("path")
        if value is None or value == "":
            return None
        if isinstance(value, (bytes, bytearray)):
            return bytes(value)
        if not isinstance(value, str):
            raise OSError(f"column {self.column!r} has {value!r}, which is not an image")
        file = expand_home(value)
        for path in (self.directory / file, self.directory / "images" / file):
            if _is_file(path):
                return path.read_bytes()
        name = value if len(value) <= _MAX_NAME else f"{value[:_MAX_NAME]}..."
        raise OSError(f"{self.column} {name!r} is not a file beside the rows or in images/")

    def open(self) -> Image.Image:
        """Open the image.

        Raises:
            OSError: The image cannot be read, or has an unknown format.
        """
        encoded = self.read_bytes() or b""
        try:
            return Image.open(io.BytesIO(encoded))
        except UnidentifiedImageError as error:  # its message is an address in memory
            raise OSError(
                f"its {len(encoded)} bytes are not an image of a known format"
            ) from error


@dataclass(frozen=True, eq=False)
class DatasetRows:
    """The rows of one split of a dataset.

    Attributes:
        source: Where the rows were read from, for messages.
        dataset: The dataset, its images not decoded.
        directory: File names of images are relative to it.
    """

    source: str
    dataset: Any
    directory: Path

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def columns(self) -> list[str]:
        """Return the names of the columns."""
        return list(self.dataset.column_names)

    def iterate_texts(self) -> Iterator[dict[str, Any]]:
        """Iterate over the rows without the columns of images."""
        names = [name for name in self.columns if not _is_image(self.dataset.features[name])]
        rows = self.dataset.select_columns(names)
        yield from (dict(row) for row in rows) if names else ({},) * len(self)

    def iterate_images(self, column: str) -> Iterator[StoredImage]:
        """Iterate over the images of a column without reading them."""
        images = self.dataset.select_columns([column])
        return (StoredImage(images, row, column, self.directory) for row in range(len(self)))


def read_split(data: str, split: str, config: str | None = None) -> DatasetRows:
    """Read one split of a dataset.

    Args:
        data: A directory that ``save_to_disk`` wrote; a directory with a file for each split
            (``val.parquet``, ``test.jsonl``) in it or in its ``data``; one parquet, jsonl, json
            or csv file, for which ``split`` is ignored; or a hub id.
        split: Name of the split.
        config: Name of the configuration on the hub; None: the only one.

    Raises:
        TaskError: The dataset or the split does not exist, or cannot be read.
    """
    import datasets

    path = expand_home(data)
    with _dataset_errors(data):
        if path.is_file():
            dataset = read_row_file(path)
            path = path.parent
        elif path.is_dir():
            dataset = _read_directory(path, split)
        else:
            _refuse_missing_path(data)
            dataset = datasets.load_dataset(data, config, split=split)
        for name, feature in dataset.features.items():
            if isinstance(feature, datasets.Image):
                dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return DatasetRows(f"{data}, split {split!r}", dataset, path)


def split_names(data: str, config: str | None = None) -> list[str] | None:
    """Return the names of the splits of a dataset; None: it has only one, without a name.

    Raises:
        TaskError: The dataset does not exist, or cannot be read.
    """
    import datasets

    path = expand_home(data)
    if path.is_file():
        return None
    with _dataset_errors(data):
        if (path / "dataset_dict.json").is_file():
            return _saved_splits(path)
        if (path / "state.json").is_file():
            return None
        if path.is_dir():
            return sorted({split_name(file) for file in list_row_files(path)})
        _refuse_missing_path(data)
        names: list[str] = datasets.get_dataset_split_names(data, config)
        return names


def _refuse_missing_path(data: str) -> None:
    if data[:1] in {"/", ".", "~"} or Path(data).suffix in FORMATS or data.count("/") != 1:
        raise TaskError(
            f"task.data = {data!r}: there is no such file or directory.",
            hint="Use a file, a directory, or a hub id such as lmms-lab/ScienceQA.",
        )


def _read_directory(directory: Path, split: str) -> Any:
    import datasets

    if (directory / "state.json").is_file():
        return _load_saved(directory, split)
    if (directory / "dataset_dict.json").is_file():
        names = _saved_splits(directory)
        if split not in names:
            raise _missing_split_error(directory, split, names)
        return _load_saved(directory / split, split)
    all_files = list_row_files(directory)
    files = [file for file in all_files if split_name(file) == split]
    if not files:
        names = sorted({split_name(file) for file in all_files})
        raise _missing_split_error(directory, split, names)
    return datasets.concatenate_datasets([read_row_file(file) for file in files])


def _saved_splits(directory: Path) -> list[str]:
    document = json.loads((directory / "dataset_dict.json").read_text(encoding="utf-8"))
    return list(document["splits"])


def _load_saved(directory: Path, split: str) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(directory))
    except IndexError as error:  # raised by `datasets` for a split without rows
        raise empty_split_error(directory, split) from error


def _missing_split_error(directory: Path, split: str, names: list[str]) -> TaskError:
    listed = ", ".join(names) or "no parquet, jsonl, json or csv files"
    return TaskError(
        f"task.data = {str(directory)!r} has no split {split!r}; it has {listed}.",
        hint="Use one of them in task.splits.",
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long
        return False


def _is_image(feature: Any) -> bool:
    import datasets

    dtype = getattr(feature, "dtype", "")
    return isinstance(feature, datasets.Image) or dtype in ("binary", "large_binary")


@contextmanager
def _dataset_errors(data: str) -> Iterator[None]:
    """Convert errors of `datasets` and the hub, which have no common class, to one line."""
    import datasets

    verbosity = datasets.logging.get_verbosity()
    try:
        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)
        yield
    except TaskError:
        raise
    except Exception as raised:
        error = raised
        if isinstance(raised, datasets.exceptions.DatasetGenerationError):
            error = raised.__cause__ or raised
        raise TaskError(
            f"task.data = {data!r} cannot be read: {describe(error)}.",
            hint="Check its name, files and splits; without a network, download it elsewhere "
            "(`hf download --repo-type dataset ID --local-dir DIR`, or save_to_disk) and set "
            "task.data = DIR.",
        ) from raised
    finally:
        datasets.logging.set_verbosity(verbosity)
