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
_WIDEST = 40  # characters of a value
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
        (what each was told; mean and standard deviation over seeds), and ``against_first``: each
        other group's difference of test accuracy to the first one, paired by seed, with a 95 %
        t-interval.
    """
    differ = _differing([document["spec"] for document in documents])
    told: list[dict[str, Any]] = []
    groups: list[list[Mapping[str, Any]]] = []
    studies = []
    for document in documents:
        mine = {key: _at(document["spec"], key) for key in sorted(differ - _SEEDS)}
        if mine not in told:
            told.append(mine)
            groups.append([])
        groups[told.index(mine)].append(document)
        studies.append(_line(document, _name(told.index(mine))))
    return {
        "differ": sorted(differ),
        "studies": studies,
        "groups": [
            _group(_name(place), told[place], members) for place, members in enumerate(groups)
        ],
        "against_first": [
            _against(groups[0], _name(place), groups[place]) for place in range(1, len(groups))
        ],
    }


def _name(place: int) -> str:
    """Name a group: A to Z, then by number."""
    return chr(ord("A") + place) if place < 26 else f"group {place + 1}"


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


def _line(document: Mapping[str, Any], group: str) -> dict[str, Any]:
    ahead = [
        found
        for found in document["comparisons"]
        if (found["rival"], found["split"]) == ("uniform2", "test")
    ]
    return {
        "study": document["study"],
        "group": group,
        "seed": _at(document["spec"], "study.seed"),
        "task_seed": _at(document["spec"], "task.seed"),
        "trials": document["trials"]["complete"] + document["trials"]["pruned"],
        "dense": document["dense"],
        "uniform2": document["uniform2"],
        "chosen": document["chosen"],
        "ahead": ahead[0] if ahead else None,
        "hypervolume": document["hypervolume"][-1] if document["hypervolume"] else None,
    }


def _group(
    name: str, told: Mapping[str, Any], members: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    over = [document["chosen"] for document in members if document["chosen"] is not None]
    found: dict[str, Any] = {
        "group": name, "told": dict(told), "studies": len(members), "finished": len(over),
    }  # fmt: skip
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
    first: Sequence[Mapping[str, Any]], name: str, other: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Give the difference of a group to the first one, on the seeds that both have."""
    mine, theirs = _by_seed(first), _by_seed(other)
    gained = [theirs[seed] - mine[seed] for seed in mine if seed in theirs]
    middle = round(float(np.mean(gained)), 6) if gained else None
    found = {"group": name, "seeds": len(gained), "difference": middle}
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
    """Give the columns, and a line for each study."""
    rows = []
    for line in found["studies"]:
        tasks = "" if line["task_seed"] is None else f", {line['task_seed']}"
        rows.append([line["study"], line["group"], f"{line['seed']}{tasks}", *_cells(line)])
    return ["study", "group", "seed", *_COLUMNS], rows


def _differences(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Give the groups, and a line for each key by which they differ."""
    groups = found["groups"]
    rows = [[key, *(_short(group["told"][key]) for group in groups)] for key in groups[0]["told"]]
    return ["key", *(group["group"] for group in groups)], rows


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def told_of_groups(found: Mapping[str, Any]) -> list[str]:
    """Say what groups of studies have in common, and how they differ."""
    told = [
        f"Group {group['group']}: {group['finished']} studies, chosen on test "
        f"{group['accuracy_test']:.3f} (sd {group['accuracy_test_sd']:.3f}), gap "
        f"{group['gap']:+.3f} (sd {group['gap_sd']:.3f}), measured speed-up "
        f"{group['speedup_measured']:.2f} (sd {group['speedup_measured_sd']:.2f})."
        for group in found["groups"]
        if group["finished"] > 1
    ]
    for pair in found["against_first"]:
        between = f"{pair['group']} against A: "
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
    parts: list[RenderableType] = [_table(*_rows(found))]
    if len(found["groups"]) > 1:
        parts += ["", _table(*_differences(found))]
    return Group(*parts, Text("\n" + "\n".join(told_of_groups(found))))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    return table


def comparison_page(found: Mapping[str, Any], documents: Sequence[Mapping[str, Any]]) -> str:
    """Write the page that has several studies beside each other."""
    sections = [
        Section("Studies", _grid(*_rows(found)), told_of_groups(found)),
        Section("What groups were told", _grid(*_differences(found)))
        if len(found["groups"]) > 1
        else None,
        Section("Finalists on test", charts=drawn({"tests": tests_beside(documents)})),
    ]
    told = f"They differ in: {', '.join(found['differ']) or 'nothing but their names'}."
    return rendered(f"{len(documents)} studies", [told], sections, scripts=True)


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Grid:
    return Grid(columns, [Row(row) for row in rows])
