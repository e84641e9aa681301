"""The tables of prunable components and of modules that cannot be pruned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.report import structure_tables

if TYPE_CHECKING:
    from effllava_optuna.policy import ModelStructure


def test_equal_components_share_a_row(structure: ModelStructure) -> None:
    (table,) = structure_tables(structure, [])
    assert [tuple(row.cells) for row in table.rows] == [
        ("language", "0-2", "attn", "4", "100", "1,200"),
        ("language", "0-2", "mlp", "32", "10", "960"),
    ]
    assert table.notes[0] == "2,160 parameters in 6 components"


def test_unprunable_modules_of_one_reason_share_a_row(structure: ModelStructure) -> None:
    unprunable = [("a.0", "experts"), ("b.0", "sinks"), ("a.1", "experts")]
    _, table = structure_tables(structure, unprunable)
    assert [tuple(row.cells) for row in table.rows] == [
        ("a.0 and 1 more", "experts"),
        ("b.0", "sinks"),
    ]
