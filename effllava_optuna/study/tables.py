"""Latency tables in a file: timed once on a machine, and then known to every study there."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import StudyError
from effllava_optuna.files import write_atomically, write_errors_as
from effllava_optuna.objectives import LatencyTable
from effllava_optuna.policy import SiteId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FORMAT = 1
_CURE = "Give latency.table a file that can be written, or leave it out."


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


def known_table(
    place: Path, origin: Mapping[str, Any], widths: Mapping[SiteId, Sequence[int]]
) -> LatencyTable | None:
    """Find the table of ``origin`` in a file; None where there is none, or no such file.

    Args:
        place: The file.
        origin: What the table shall depend on.
        widths: By site, those that it must have times of.

    Raises:
        StudyError: The file holds something else, or the table is damaged.
    """
    for document in _read(place):
        if document["origin"] == origin:
            try:
                table = restored_table(document)
                if _whole(table, widths):
                    return table
            except (AttributeError, KeyError, TypeError, ValueError):
                pass
            raise StudyError(
                f"{place}: the latency table of this model and machine is damaged.",
                hint="Remove the file: widths are timed again.",
            )
    return None


def _whole(table: LatencyTable, widths: Mapping[SiteId, Sequence[int]]) -> bool:
    """Tell whether a table has times of all widths, and nothing but times."""
    rows = [row for sites in table.saved_ms.values() for row in sites.values()]
    times = [*table.dense_ms.values(), *(ms for row in rows for ms in row.values())]
    return (
        table.new_tokens == table.origin["new_tokens"]
        and {"prefill"} <= set(table.dense_ms) == set(table.saved_ms)
        and all(math.isfinite(ms) for ms in (*times, *table.errors, table.vision_ms))
        and min(table.dense_ms.values()) > 0 <= table.vision_ms
        and all(
            {site: set(row) for site, row in sites.items()}
            == {site: set(mine) for site, mine in widths.items()}
            for sites in table.saved_ms.values()
        )
        and set(table.friendly) == set(widths)
        and all(
            list(mine) == sorted(set(mine) & set(widths[site])) and mine[-1] == max(widths[site])
            for site, mine in table.friendly.items()
        )
    )


def check_file(place: Path) -> None:
    """Refuse a file before it is needed.

    Raises:
        StudyError: It holds something else, or could not be written.
    """
    _read(place)
    folder = place.resolve().parent
    if not folder.is_dir() or not os.access(place if place.exists() else folder, os.W_OK):
        raise StudyError(
            f"{place}: a latency table cannot be written there.",
            hint=_CURE,
        )


def keep_table(place: Path, table: LatencyTable) -> None:
    """Add a table to a file, in place of one of the same origin.

    Of tables that two processes add at the same moment one may be lost, and is timed again.

    Raises:
        StudyError: The file cannot be written, or holds something else.
    """
    others = [document for document in _read(place) if document["origin"] != table.origin]
    text = json.dumps({"format": _FORMAT, "tables": [*others, facts_of(table)]}, indent=1)
    with write_errors_as(StudyError, place, hint=_CURE):
        write_atomically(place, text + "\n")


def _read(place: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        tables = found["tables"] if found["format"] == _FORMAT else None
        if isinstance(tables, list) and all(isinstance(one["origin"], dict) for one in tables):
            return tables
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise StudyError(
        f"{place}: holds no latency tables.",
        hint="Name another file in latency.table; it is written where there is none.",
    )
