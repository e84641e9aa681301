"""An image in a row of a dataset, or in a file that the row names."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from effllava_optuna.errors import shorten
from effllava_optuna.files import expand_home
from effllava_optuna.tasks.data.row_source import place_of

if TYPE_CHECKING:
    from effllava_optuna.tasks.data.row_source import RowSource


@dataclass(frozen=True, eq=False)
class StoredImage:
    """An image in a row of a dataset, or in a file that the row names.

    Attributes:
        rows: The rows.
        row: Index of the row.
        column: Name of the column.
        directory: File names are relative to it, or to its directory ``images``.
    """

    rows: RowSource
    row: int
    column: str
    directory: Path

    @property
    def place(self) -> str:
        """Return where the row is stored, for messages."""
        return place_of(self.rows, self.row)

    @property
    def name(self) -> str:
        """Return the name of the file as the row has it; empty if the row has the image itself."""
        value = self.rows.value(self.row, self.column)
        return value if isinstance(value, str) else ""

    def read_bytes(self) -> bytes | None:
        """Return the encoded image; None if the row has none.

        Raises:
            OSError: The file cannot be read.
            ValueError: The value is not an image, or is a list of several; or a file is empty.
        """
        stored = self.locate()
        return stored.read_bytes() if isinstance(stored, Path) else stored

    def locate(self) -> bytes | Path | None:
        """Return the encoded image, or the file that has it; None if the row has no image.

        Raises:
            OSError: There is no such file.
            ValueError: See `read_bytes`.
        """
        value = self.rows.value(self.row, self.column)
        if isinstance(value, list):
            if len(value) > 1:
                raise ValueError(f"{self.column} is a list of {len(value)} images, not of one")
            value = value[0] if value else None
        if isinstance(value, Mapping) and {"bytes", "path"} & set(value):
            encoded = value.get("bytes")
            if not isinstance(encoded, (bytes, type(None))):
                raise ValueError(
                    f"{self.column} has the bytes {shorten(encoded)}, which are not bytes"
                )
            value = value.get("path") if encoded is None else encoded
        if value is None or value == "":
            return None
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise ValueError(f"{self.column} is {shorten(value)}, which is not an image")
        file = expand_home(value)
        for path in (self.directory / file, self.directory / "images" / file):
            try:
                found = path.stat()
            except (OSError, ValueError):  # none, or the name is too long or has a null character
                continue
            if S_ISREG(found.st_mode):
                if found.st_size == 0:
                    raise ValueError(f"{self.column} {shorten(value)} is an empty file")
                return path
        raise OSError(
            f"{self.column} {shorten(value)} is not a file beside the rows or in images/"
        )

    def open(self) -> Image.Image:
        """Open the image.

        Raises:
            OSError: The image cannot be read, or has an unknown format.
            ValueError: See `read_bytes`.
        """
        encoded = self.read_bytes() or b""
        try:
            return Image.open(io.BytesIO(encoded))
        except UnidentifiedImageError as error:  # its message is an address in memory
            raise OSError(
                f"its {len(encoded)} bytes are not an image of a known format"
            ) from error
