"""Parsing of the rows of a dataset by a schema."""

from __future__ import annotations

import hashlib
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from effllava_optuna.errors import TaskError, shorten
from effllava_optuna.tasks.task import WITHOUT_ANSWERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from effllava_optuna.tasks.data.dataset_rows import DatasetRows, StoredImage
    from effllava_optuna.tasks.schemas import ParsedRow, RowSchema

_LISTED = 3  # faulty rows in one message


class GroupedRow(NamedTuple):
    """A parsed row, its group, and its image, which is not open."""

    content: ParsedRow
    group: str
    image: StoredImage | None


def parse_rows(
    rows: DatasetRows, schema: RowSchema, renamed: Mapping[str, str]
) -> list[GroupedRow]:
    """Parse all rows, and read each image once to identify its group by content.

    Args:
        rows: The rows.
        schema: The schema of the rows.
        renamed: Columns of the dataset by column of the schema, where the names differ.

    Raises:
        TaskError: A column is missing, or rows cannot be used.
    """
    columns = _match_columns(rows, schema, renamed)
    images: Iterable[StoredImage | None] = repeat(None, len(rows))
    if columns.get("image") in rows.columns:
        images = rows.iterate_images(columns["image"])
    faults: list[str] = []
    hint = "Fix these rows (the first one is row 0), or remove them."
    number_of_id: dict[str, int] = {}
    parsed: list[GroupedRow] = []
    texts = rows.iterate([column for name, column in columns.items() if name != "image"])
    for number, (values, image) in enumerate(zip(texts, images, strict=True)):
        row = {name: values.get(column) for name, column in columns.items()}
        try:
            encoded = None if image is None else image.read_bytes()
            if encoded is None and "image" in schema.required_columns:
                raise ValueError(f"{columns['image']} is empty")
            content = schema.parse(row, has_image=encoded is not None)
            if content.id is not None and number_of_id.setdefault(content.id, number) != number:
                raise ValueError(
                    f"id {shorten(content.id)} is also that of row {number_of_id[content.id]}"
                )
        except (ValueError, OSError) as error:
            faults.append(f"row {number}: {error}")
            if not schema.has_answer(row) and schema.label in schema.required_columns:
                hint = (
                    "Fix these rows (the first one is row 0), remove them, or set "
                    f"{WITHOUT_ANSWERS}, which needs no answers."
                )
            continue
        parsed.append(_grouped(content, image, encoded))
    if faults:
        more = f"; {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise TaskError(f"{rows.source}: {'; '.join(faults[:_LISTED])}{more}.", hint=hint)
    return parsed


def _grouped(content: ParsedRow, image: StoredImage | None, encoded: bytes | None) -> GroupedRow:
    """Identify the group by the image, or by the question if there is no image."""
    kind, key = ("text", content.question.encode()) if encoded is None else ("picture", encoded)
    group = f"{kind}-{hashlib.sha256(key).hexdigest()[:16]}"
    return GroupedRow(content, group, None if encoded is None else image)


def _match_columns(
    rows: DatasetRows, schema: RowSchema, renamed: Mapping[str, str]
) -> dict[str, str]:
    """Return the column of the dataset for each column of the schema."""
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
