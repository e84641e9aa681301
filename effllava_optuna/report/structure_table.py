"""The components of a model as tables: what can be pruned, and what cannot, with the reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.report.text_table import TableRow, TextTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.policy import Component, Kind, ModelStructure


def structure_tables(
    structure: ModelStructure, unprunable: Sequence[tuple[str, str]]
) -> list[TextTable]:
    """Build the table of prunable components and, if there are any, that of unprunable modules.

    Equal components of several layers share one row.

    Args:
        structure: The structure of the model.
        unprunable: Modules that cannot be pruned, each with the reason.
    """
    equal: dict[tuple[str, Kind, int, int], list[Component]] = {}
    for component in structure.components:
        key = (component.tower, component.kind, component.width, component.unit_params)
        equal.setdefault(key, []).append(component)
    rows = [
        TableRow(
            (
                tower,
                _ranges([component.layer for component in components]),
                kind,
                f"{width:,}",
                f"{unit_params:,}",
                f"{len(components) * width * unit_params:,}",
            )
        )
        for (tower, kind, width, unit_params), components in equal.items()
    ]
    notes = [f"{structure.parameters:,} parameters in {len(structure.components)} components"]
    if not unprunable:
        notes.append("The model has no other attention block or MLP.")
    prunable = TextTable(
        ("tower", "layers", "kind", "units", "parameters per unit", "parameters"),
        rows,
        notes=notes,
        left_columns=3,
    )
    return [prunable, _unprunable_table(unprunable)] if unprunable else [prunable]


def _unprunable_table(unprunable: Sequence[tuple[str, str]]) -> TextTable:
    """Build the table of modules that cannot be pruned; those of one reason share a row."""
    modules_by_reason: dict[str, list[str]] = {}
    for module, reason in unprunable:
        modules_by_reason.setdefault(reason, []).append(module)
    rows = []
    for reason, modules in modules_by_reason.items():
        others = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
        rows.append(TableRow((f"{modules[0]}{others}", reason)))
    return TextTable(("not prunable", "reason"), rows, left_columns=2)


def _ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as ranges, such as ``0-2, 5``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
