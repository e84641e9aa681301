"""Latency tables in a file: timed once on a machine, and then known to every study there."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import StudyError
from effllava_optuna.objectives import LatencyTable
from effllava_optuna.policy import SiteId

if TYPE_CHECKING:
    from collections.abc import Mapping

_FORMAT = 1


def facts_of(table: LatencyTable) -> dict[str, Any]:
    """Give a table as JSON, its mean error spelt out for those who read it."""
    return asdict(table) | {"error": table.error}


def restored_table(document: Mapping[str, Any]) -> LatencyTable:
    """Read a table from JSON, whose keys are all strings."""
    values = {field.name: document[field.name] for field in fields(LatencyTable)}
    values["saved_ms"] = {phase: by_width(sites) for phase, sites in document["saved_ms"].items()}
    values["friendly"] = {
        SiteId(site): tuple(widths) for site, widths in document["friendly"].items()
    }
    for name in ("errors", "launched"):
        values[name] = tuple(document[name])
    return LatencyTable(**values)


def by_width(table: Mapping[str, Mapping[str, float]]) -> dict[SiteId, dict[int, float]]:
    """Turn the keys of numbers by site and width back into what they were before JSON."""
    return {
        SiteId(site): {int(width): float(value) for width, value in row.items()}
        for site, row in table.items()
    }


def known_table(place: Path, origin: Mapping[str, Any]) -> LatencyTable | None:
    """Find the table of ``origin`` in a file; None where there is none, or no such file.

    Raises:
        StudyError: The file holds something else.
    """
    for document in _read(place):
        if document["origin"] == origin:
            return restored_table(document)
    return None


def keep_table(place: Path, table: LatencyTable) -> None:
    """Add a table to a file, in place of one of the same origin.

    Raises:
        StudyError: The file cannot be written, or holds something else.
    """
    others = [document for document in _read(place) if document["origin"] != table.origin]
    text = json.dumps({"format": _FORMAT, "tables": [*others, facts_of(table)]}, indent=1)
    try:
        handle, draft = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        Path(draft).replace(place)
    except OSError as error:
        raise StudyError(
            f"{place}: a latency table cannot be written: {error.strerror}.",
            hint="Give latency.table a file that can be written, or leave it out.",
        ) from error


def _read(place: Path) -> list[dict[str, Any]]:
    if not place.exists():
        return []
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        tables = found["tables"] if found["format"] == _FORMAT else None
        if isinstance(tables, list) and all("origin" in one for one in tables):
            return tables
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise StudyError(
        f"{place}: holds no latency tables.",
        hint="Name another file in latency.table; it is written where there is none.",
    )
