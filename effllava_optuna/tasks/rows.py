"""Find the rows of a dataset: on the hub, in a directory or in a file.

Pictures stay encoded where they are stored until somebody looks at one. `datasets` takes most of a
second to import, so that only those pay for it who read rows.
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
from effllava_optuna.tasks.files import KINDS, empty, files_of, read_file, split_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHOWN = 80  # characters of a name in a message


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in a row of a dataset, or in a file that the row names.

    Attributes:
        rows: The column of the dataset that has the pictures, not decoded.
        row: Number of the row.
        column: Name of the column.
        beside: Directory that file names are relative to, or that has them in ``images``.
    """

    rows: Any
    row: int
    column: str
    beside: Path

    def encoded(self) -> bytes | None:
        """Read the picture as its file holds it; None where the row has none.

        Raises:
            OSError: Its file cannot be read.
        """
        value = self.rows[self.row][self.column]
        if isinstance(value, Mapping):
            if value.get("bytes") is not None:
                return bytes(value["bytes"])
            value = value.get("path")
        if value is None or value == "":
            return None
        if isinstance(value, (bytes, bytearray)):
            return bytes(value)
        if not isinstance(value, str):
            raise OSError(f"column {self.column!r} holds {value!r}, which is no picture")
        for place in (self.beside / value, self.beside / "images" / value):
            if _is_file(place):
                return place.read_bytes()
        shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
        raise OSError(f"{self.column} {shown!r} is no file beside the rows or in images/")

    def open(self) -> Image.Image:
        """Open the picture.

        Raises:
            OSError: It cannot be read, or is no picture.
        """
        encoded = self.encoded() or b""
        try:
            return Image.open(io.BytesIO(encoded))
        except UnidentifiedImageError as error:  # which tells where the bytes are in memory
            raise OSError(f"its {len(encoded)} bytes are no picture of a known format") from error


@dataclass(frozen=True, eq=False)
class Rows:
    """One split of a dataset.

    Attributes:
        place: What it was read from, for messages.
        table: The dataset, its pictures not decoded.
        beside: Directory that file names are relative to.
    """

    place: str
    table: Any
    beside: Path

    def __len__(self) -> int:
        return len(self.table)

    @property
    def columns(self) -> list[str]:
        """Give the names of the columns."""
        return list(self.table.column_names)

    def texts(self) -> Iterator[dict[str, Any]]:
        """Go through the rows, columns with pictures left out."""
        bare = self.table.select_columns(
            [name for name in self.columns if not _pictured(self.table.features[name])]
        )
        yield from (dict(row) for row in bare) if bare.column_names else ({},) * len(self)

    def pictures(self, column: str) -> Iterator[Picture]:
        """Go through the pictures of a column; nothing is read yet."""
        alone = self.table.select_columns([column])
        return (Picture(alone, row, column, self.beside) for row in range(len(self)))


def read_rows(data: str, split: str, config: str | None = None) -> Rows:
    """Read one split of a dataset.

    Args:
        data: A directory that ``save_to_disk`` wrote, one with a file for each split
            (``val.parquet``, ``test.jsonl``) in it or in its ``data``, one parquet, jsonl, json
            or csv file (whatever the split is called), or a hub id.
        split: Name of the split.
        config: Name of the configuration on the hub; None: its only one.

    Raises:
        TaskError: There is no such dataset or split, or it cannot be read.
    """
    import datasets

    place = Path(data).expanduser()
    with _explained(data):
        if place.is_file():
            table = read_file(place)
            place = place.parent
        elif place.is_dir():
            table = _from_directory(place, split)
        else:
            _refuse_path(data)
            table = _from_hub(data, split, config)
        for name, feature in table.features.items():
            if isinstance(feature, datasets.Image):
                table = table.cast_column(name, datasets.Image(decode=False))
    return Rows(f"{data}, split {split!r}", table, place)


def splits_of(data: str, config: str | None = None) -> list[str] | None:
    """Name the splits of a dataset; None: a file has but one.

    Raises:
        TaskError: There is no such dataset.
    """
    import datasets

    place = Path(data).expanduser()
    if place.is_file():
        return None
    with _explained(data):
        if (place / "dataset_dict.json").is_file():
            return _dict_splits(place)
        if (place / "state.json").is_file():
            return None
        if place.is_dir():
            return sorted({split_of(file) for file in files_of(place)})
        _refuse_path(data)
        found: list[str] = datasets.get_dataset_split_names(data, config)
        return found


def _refuse_path(data: str) -> None:
    if data[:1] in {"/", ".", "~"} or Path(data).suffix in KINDS or data.count("/") != 1:
        raise TaskError(
            f"task.data = {data!r}: there is no such file or directory.",
            hint="Give a file, a directory, or a hub id such as lmms-lab/ScienceQA.",
        )


def _from_hub(data: str, split: str, config: str | None) -> Any:
    import datasets

    return datasets.load_dataset(data, config, split=split)


def _from_directory(place: Path, split: str) -> Any:
    import datasets

    if (place / "state.json").is_file():
        return _from_disk(place, split)
    if (place / "dataset_dict.json").is_file():
        known = _dict_splits(place)
        if split not in known:
            raise _no_split(str(place), split, known)
        return _from_disk(place / split, split)
    files = files_of(place)
    mine = [file for file in files if split_of(file) == split]
    if not mine:
        raise _no_split(str(place), split, sorted({split_of(file) for file in files}))
    return datasets.concatenate_datasets([read_file(file) for file in mine])


def _dict_splits(place: Path) -> list[str]:
    document = json.loads((place / "dataset_dict.json").read_text(encoding="utf-8"))
    return list(document["splits"])


def _from_disk(place: Path, split: str) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(place))
    except IndexError as error:  # what `datasets` makes of no rows at all
        raise empty(place, split) from error


def _no_split(place: str, split: str, known: list[str]) -> TaskError:
    told = ", ".join(known) or "no parquet, jsonl, json or csv files"
    return TaskError(
        f"task.data = {place!r} has no split {split!r}; it has {told}.",
        hint="Name one of them in task.splits.",
    )


def _is_file(place: Path) -> bool:
    try:
        return place.is_file()
    except OSError:  # the name is too long
        return False


def _pictured(feature: Any) -> bool:
    import datasets

    kind = getattr(feature, "dtype", "")
    return isinstance(feature, datasets.Image) or kind in ("binary", "large_binary")


@contextmanager
def _explained(data: str) -> Iterator[None]:
    """Say in one line what `datasets` and the hub raise: they have no common family."""
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
            "(`hf download --repo-type dataset ID --local-dir DIR`, or save_to_disk) and give "
            "task.data = DIR.",
        ) from raised
    finally:
        datasets.logging.set_verbosity(verbosity)
