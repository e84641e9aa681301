"""Several studies beside each other: what they were told differently, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text
from scipy.stats import t as student

from effllava_optuna.report.figures import tests_beside
from effllava_optuna.report.page import Grid, Row, Section, drawn, rendered
from effllava_optuna.report.tables import number, with_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

_PLACES = {"study.name", "study.storage", "study.artifacts", "export.directory", "latency.table"}
_SEEDS = {"study.seed", "task.seed"}
_LEVEL = 0.95
_COLUMNS = (
    "trials", "dense, test", "two numbers, test", "chosen, test", "ahead of two numbers", "gap",
    "speed-up\nmeasured", "kept", "hypervolume\nlast epoch",
)  # fmt: skip


def compare(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put studies beside each other.

    Studies that were told the same but for their seeds form a group; groups are compared on the
    seeds that they share.

    Args:
        documents: Of the studies, the one to compare with first.

    Returns:
        ``differ`` (the keys of the study files that differ), ``studies`` (a line each), ``groups``
        (mean and standard deviation over seeds), and ``against_first``: each other group's
        difference of test accuracy to the first one, paired by seed, with a 95 % t-interval.
    """
    differ = _differing([document["spec"] for document in documents])
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for document in documents:
        groups.setdefault(_told(document, differ - _SEEDS), []).append(document)
    first, *others = groups
    return {
        "differ": sorted(differ),
        "studies": [_line(document, differ) for document in documents],
        "groups": [_group(name, members) for name, members in groups.items()],
        "against_first": [
            _against(first, groups[first], other, groups[other]) for other in others
        ],
    }


def _differing(specs: Sequence[Mapping[str, Any]]) -> set[str]:
    keys = {f"{table}.{key}" for spec in specs for table in spec for key in spec[table]}
    return {
        key
        for key in keys - _PLACES
        if any(_at(spec, key) != _at(specs[0], key) for spec in specs[1:])
    }


def _at(spec: Mapping[str, Any], key: str) -> Any:
    table, _, leaf = key.partition(".")
    return spec.get(table, {}).get(leaf)


def _told(document: Mapping[str, Any], keys: set[str]) -> str:
    told = [f"{key} = {_at(document['spec'], key)}" for key in sorted(keys)]
    return ", ".join(told) or "all alike"


def _line(document: Mapping[str, Any], differ: set[str]) -> dict[str, Any]:
    ahead = [
        found
        for found in document["comparisons"]
        if (found["rival"], found["split"]) == ("uniform2", "test")
    ]
    return {
        "study": document["study"],
        "told": {key: _at(document["spec"], key) for key in sorted(differ)},
        "trials": document["trials"]["complete"] + document["trials"]["pruned"],
        "dense": document["dense"],
        "uniform2": document["uniform2"],
        "chosen": document["chosen"],
        "ahead": ahead[0] if ahead else None,
        "hypervolume": document["hypervolume"][-1] if document["hypervolume"] else None,
    }


def _group(name: str, members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    over = [document["chosen"] for document in members if document["chosen"] is not None]
    found: dict[str, Any] = {"group": name, "studies": len(members), "finished": len(over)}
    for key in ("accuracy_test", "gap", "speedup_measured"):
        values = [row[key] for row in over]
        found[key] = round(float(np.mean(values)), 6) if values else None
        spread = round(float(np.std(values, ddof=1)), 6) if len(values) > 1 else None
        found[f"{key}_sd"] = spread
    return found


def _by_seed(group: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, Any], float]:
    """Give the test accuracy of each seed's choice."""
    return {
        (_at(found["spec"], "study.seed"), _at(found["spec"], "task.seed")): float(
            found["chosen"]["accuracy_test"]
        )
        for found in group
        if found["chosen"] is not None
    }


def _against(
    first: str,
    ones: Sequence[Mapping[str, Any]],
    other: str,
    others: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Give the difference of two groups on the seeds that both have."""
    mine, theirs = _by_seed(ones), _by_seed(others)
    gained = [theirs[seed] - mine[seed] for seed in mine if seed in theirs]
    middle = round(float(np.mean(gained)), 6) if gained else None
    found = {"group": other, "with": first, "seeds": len(gained), "difference": middle}
    if middle is None or len(gained) < 2:
        return found | {"interval": None}
    error = float(np.std(gained, ddof=1)) / len(gained) ** 0.5
    half = float(student.ppf((1 + _LEVEL) / 2, len(gained) - 1)) * error
    return found | {"interval": [round(middle - half, 6), round(middle + half, 6)]}


def _cells(line: Mapping[str, Any]) -> list[str]:
    def test(row: Mapping[str, Any] | None) -> str:
        return "-" if row is None else with_interval(row, "test")

    chosen, ahead = line["chosen"] or {}, "-"
    if line["ahead"] is not None:
        low, high = line["ahead"]["interval"]
        ahead = f"{line['ahead']['difference']:+.3f}\n[{low:+.3f} {high:+.3f}]"
    return [
        str(line["trials"]),
        test(line["dense"]),
        test(line["uniform2"]),
        test(line["chosen"]),
        ahead,
        number(chosen.get("gap"), "+.3f"),
        number(chosen.get("speedup_measured"), ".2f"),
        number(chosen.get("kept_share"), ".3f"),
        number(line["hypervolume"], ".4g"),
    ]


def _rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    keys = found["differ"]
    rows = [
        [line["study"], *(str(line["told"][key]) for key in keys), *_cells(line)]
        for line in found["studies"]
    ]
    return ["study", *keys, *_COLUMNS], rows


def told_of_groups(found: Mapping[str, Any]) -> list[str]:
    """Say what groups of studies have in common, and how they differ."""
    told = [
        f"{group['group']}: {group['finished']} studies, chosen on test "
        f"{group['accuracy_test']:.3f} (sd {group['accuracy_test_sd']:.3f}), gap "
        f"{group['gap']:+.3f} (sd {group['gap_sd']:.3f}), measured speed-up "
        f"{group['speedup_measured']:.2f} (sd {group['speedup_measured_sd']:.2f})."
        for group in found["groups"]
        if group["finished"] > 1
    ]
    for pair in found["against_first"]:
        between = f"{pair['group']} against {pair['with']}: "
        if pair["difference"] is None:
            told.append(f"{between}they share no seed of which both are finished.")
        elif pair["interval"] is None:
            told.append(f"{between}{pair['difference']:+.3f} on test, on one seed: says little.")
        else:
            low, high = pair["interval"]
            told.append(
                f"{between}{pair['difference']:+.3f} [{low:+.3f}, {high:+.3f}] on test, paired by "
                f"{pair['seeds']} seeds."
            )
    told.append(
        "[..]: 95 % intervals, over samples within a study and over seeds between groups. "
        "Latencies and hypervolumes can be compared where they are of the same machine."
    )
    return told


def comparison(found: Mapping[str, Any]) -> RenderableType:
    """Show studies beside each other on a terminal."""
    columns, rows = _rows(found)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    return Group(table, Text("\n" + "\n".join(told_of_groups(found))))


def comparison_page(found: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]) -> str:
    """Write the page that has several studies beside each other."""
    columns, rows = _rows(found)
    sections = [
        Section("Studies", Grid(columns, [Row(row) for row in rows]), told_of_groups(found)),
        Section("Finalists on test", charts=drawn({"tests": tests_beside(documents)})),
    ]
    told = f"They differ in: {', '.join(found['differ']) or 'nothing but their names'}."
    return rendered(f"{len(rows)} studies", [told], sections, scripts=True)
