"""Latency tables in a file, so that several studies on a machine share one measurement."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import StudyError
from effllava_optuna.files import read_text, write_atomically, write_errors_as
from effllava_optuna.objectives import LatencyTable
from effllava_optuna.policy import ComponentId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FORMAT = 1
_OTHER_FILE = "Set latency.table to another file; it is created if it does not exist."
_CURE = "Set latency.table to a file that can be written, or remove the key."


def facts_of(table: LatencyTable) -> dict[str, Any]:
    """Return a table as JSON, with its mean error for people who read the file."""
    return asdict(table) | {"error": table.error}


def restored_table(document: Mapping[str, Any]) -> LatencyTable:
    """Read a table from JSON, in which all keys are strings."""
    names = [field.name for field in fields(LatencyTable) if field.name != "fewer"]
    values = {name: document[name] for name in names}
    fewer = document.get("fewer", {})
    values["fewer"] = {int(percent): restored_table(table) for percent, table in fewer.items()}
    values["saved_ms"] = {
        phase: by_width(components) for phase, components in document["saved_ms"].items()
    }
    values["friendly"] = {
        ComponentId(component): tuple(widths) for component, widths in document["friendly"].items()
    }
    for name in ("errors", "launched"):
        values[name] = tuple(document[name])
    return LatencyTable(**values)


def by_width(table: Mapping[str, Mapping[str, float]]) -> dict[ComponentId, dict[int, float]]:
    """Convert the keys of a JSON table back to component ids and widths."""
    return {
        ComponentId(component): {int(width): float(value) for width, value in row.items()}
        for component, row in table.items()
    }


def find_table(
    file: Path, origin: Mapping[str, Any], widths: Mapping[ComponentId, Sequence[int]]
) -> LatencyTable | None:
    """Find the table of an origin in a file.

    Args:
        file: The file; it may not exist.
        origin: What the table must depend on; see `effllava_optuna.objectives.origin_of`.
        widths: Widths by component that the table must contain.

    Returns:
        None if the file has no such table.

    Raises:
        StudyError: The file contains something else, or the table is damaged.
    """
    for document in _read(file):
        if document["origin"] == origin:
            try:
                table = restored_table(document)
                if _is_complete(table, widths):
                    return table
            except (AttributeError, KeyError, TypeError, ValueError):
                pass
            raise StudyError(
                f"{file}: the latency table of this model and machine is damaged.",
                hint="Remove the file; the widths will be timed again.",
            )
    return None


def _is_complete(table: LatencyTable, widths: Mapping[ComponentId, Sequence[int]]) -> bool:
    """Return whether a table has finite times for exactly these widths."""
    rows = [row for components in table.saved_ms.values() for row in components.values()]
    percents = table.origin.get("token_choice", {"widths": [100]})["widths"]
    times = [*table.dense_ms.values(), *(ms for row in rows for ms in row.values())]
    return (
        table.new_tokens == table.origin["new_tokens"]
        and sorted(table.fewer) == percents[:-1]
        and all(_is_complete(fewer, widths) for fewer in table.fewer.values())
        and {"prefill"} <= set(table.dense_ms) == set(table.saved_ms)
        and all(math.isfinite(ms) for ms in (*times, *table.errors, table.vision_ms))
        and min(table.dense_ms.values()) > 0 <= table.vision_ms
        and all(
            {component: set(row) for component, row in components.items()}
            == {component: set(allowed) for component, allowed in widths.items()}
            for components in table.saved_ms.values()
        )
        and set(table.friendly) == set(widths)
        and all(
            list(friendly) == sorted(set(friendly) & set(widths[component]))
            and friendly[-1] == max(widths[component])
            for component, friendly in table.friendly.items()
        )
    )


def check_file(file: Path) -> None:
    """Check that a latency table can be stored in a file.

    Raises:
        StudyError: The file contains something else, or cannot be written.
    """
    _read(file)
    folder = file.resolve().parent
    if not folder.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise StudyError(f"{file}: a latency table cannot be written there.", hint=_CURE)


def store_table(file: Path, table: LatencyTable) -> None:
    """Add a table to a file; it replaces one of the same origin.

    If two processes add tables at the same moment, one table may be lost and is timed again.

    Raises:
        StudyError: The file cannot be written, or contains something else.
    """
    others = [document for document in _read(file) if document["origin"] != table.origin]
    text = json.dumps({"format": _FORMAT, "tables": [*others, facts_of(table)]}, indent=1)
    with write_errors_as(StudyError, file, hint=_CURE):
        write_atomically(file, text + "\n")


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        text = read_text(file)
    except FileNotFoundError:
        return []
    except OSError:
        text = ""
    except ValueError as error:
        raise StudyError(f"{file} cannot be read: {error}.", hint=_OTHER_FILE) from error
    try:
        document = json.loads(text)
        tables = document["tables"] if document["format"] == _FORMAT else None
        if isinstance(tables, list) and all(isinstance(table["origin"], dict) for table in tables):
            return tables
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise StudyError(f"{file} does not contain latency tables.", hint=_OTHER_FILE)
