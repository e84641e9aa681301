"""Parsing of the rows of a dataset by a schema."""

from __future__ import annotations

import hashlib
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from effllava_optuna.errors import TaskError, shorten
from effllava_optuna.tasks.schemas.row_schema import is_empty
from effllava_optuna.tasks.task import WITHOUT_ANSWERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from effllava_optuna.tasks.data.dataset_rows import DatasetRows
    from effllava_optuna.tasks.data.stored_image import StoredImage
    from effllava_optuna.tasks.schemas import ParsedRow, RowSchema

_LISTED = 3  # faulty rows in one message


class GroupedRow(NamedTuple):
    """A parsed row, its group, and its image, which is not open."""

    content: ParsedRow
    group: str
    image: StoredImage | None


def parse_rows(
    rows: DatasetRows,
    schema: RowSchema,
    renamed: Mapping[str, str],
    *,
    open_images: bool = True,
) -> list[GroupedRow]:
    """Parse all rows, and read each image once to identify its group by content.

    Args:
        rows: The rows.
        schema: The schema of the rows.
        renamed: Columns of the dataset by column of the schema, where the names differ.
        open_images: Whether images are read. Otherwise their files must exist, and the group is
            identified by the name of the file; of images within the rows, by the row.

    Raises:
        TaskError: A column is missing, or rows cannot be used.
    """
    columns = _match_columns(rows, schema, renamed)
    images: Iterable[StoredImage | None] = repeat(None, len(rows))
    if columns.get("image") in rows.columns:
        images = rows.iterate_images(columns["image"])
    unread = not open_images and rows.rows.may_embed(columns.get("image", ""))
    faults: list[tuple[int, str]] = []
    cures: list[str] = []
    number_of_id: dict[str, int] = {}
    parsed: list[GroupedRow] = []
    texts = rows.iterate([column for name, column in columns.items() if name != "image"])
    for number, (values, image) in enumerate(zip(texts, images, strict=True)):
        row = {name: values.get(column) for name, column in columns.items()}
        try:
            key = _image_key(image, open_images=open_images, unread=unread)
            if key is None and "image" in schema.required_columns:
                raise ValueError(f"{columns['image']} is empty")
            content = schema.parse(row, has_image=key is not None)
            if content.id is not None and number_of_id.setdefault(content.id, number) != number:
                raise ValueError(
                    f"id {shorten(content.id)} is also that of "
                    f"{rows.rows.place(number_of_id[content.id]).line}"
                )
        except (ValueError, OSError) as error:
            faults.append((number, str(error)))
            cures.append(_cure(schema, row))
            continue
        parsed.append(_grouped(content, image, key))
    if faults:
        raise _faulty_rows_error(rows, faults, next(filter(None, cures), ""))
    return parsed


def _cure(schema: RowSchema, row: Mapping[str, Any]) -> str:
    """Return what helps against a fault beside a correction of the row; empty: nothing."""
    answer = row.get(schema.label)
    if schema.label in schema.required_columns and not schema.has_answer(row):
        return f"set {WITHOUT_ANSWERS}, which needs no answers"
    if isinstance(answer, (int, float)) and is_empty(row.get("choices")):
        return f'write numbers as texts ("{answer}")'
    return ""


def _faulty_rows_error(rows: DatasetRows, faults: list[tuple[int, str]], cure: str) -> TaskError:
    """Create the error about unusable rows; it lists the first ones, and counts the others."""
    listed: list[str] = []
    file = None
    for number, reason in faults[:_LISTED]:
        place = rows.rows.place(number)
        # The file is named once, unless the next row is in another one.
        named = place.line if listed and place.file == file else rows.place(number)
        listed.append(f"{named}: {reason}")
        file = place.file
    more = f"; {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    first = " (the first one is row 1)" if "row 1" in rows.rows.place(0).line else ""
    hint = f"Fix these rows{first}, {f'remove them, or {cure}' if cure else 'or remove them'}."
    return TaskError(f"{'; '.join(listed)}{more}.", hint=hint)


def _image_key(
    image: StoredImage | None, *, open_images: bool, unread: bool
) -> bytes | Path | str | None:
    """Return what identifies an image: its content, its file, or its row; None: no image."""
    if image is None:
        return None
    if unread:
        return image.place  # rows of several files have the same numbers
    return image.read_bytes() if open_images else image.locate()


def _grouped(
    content: ParsedRow, image: StoredImage | None, key: bytes | Path | str | None
) -> GroupedRow:
    """Identify the group by the image, or by the question if there is no image."""
    if key is None:
        kind, name = "text", content.question.encode()
    else:
        kind = "picture"
        name = key if isinstance(key, bytes) else str(key).encode(errors="surrogateescape")
    group = f"{kind}-{hashlib.sha256(name).hexdigest()[:16]}"
    return GroupedRow(content, group, None if key is None else image)


def _match_columns(
    rows: DatasetRows, schema: RowSchema, renamed: Mapping[str, str]
) -> dict[str, str]:
    """Return the column of the dataset for each column of the schema.

    Raises:
        TaskError: A column is missing.
    """
    required = schema.required_columns
    columns = {name: renamed.get(name, name) for name in (*schema.required, *schema.optional)}
    for name in renamed:
        if name not in columns:
            raise TaskError(
                f"task.columns names {shorten(name)}, which task {schema.name!r} does not have.",
                hint=f"Use one of {', '.join(columns)}.",
            )
    for name, column in columns.items():
        if column not in rows.columns and (name in required or name in renamed):
            unlabelled = f", or {WITHOUT_ANSWERS} if there are no answers"
            raise TaskError(
                f"{rows.source} has no column {shorten(column)}; "
                f"it has {', '.join(map(shorten, rows.columns))}.",
                hint=f"Set task.columns.{name} to one of them"
                f"{unlabelled if name == schema.label and name in required else ''}.",
            )
    return columns
