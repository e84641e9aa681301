"""The table of what a speed-up is made of."""

from __future__ import annotations

from typing import Any

from effllava_optuna.policy import IMAGE_TOKENS, Component, Kind, ModelStructure, Policy
from effllava_optuna.report import result_row, speedup_table

MLP = Component("language", 0, Kind.MLP, 8, 10)
STRUCTURE = ModelStructure((IMAGE_TOKENS, MLP))


def row_of(percent: int, structure: ModelStructure = STRUCTURE, **values: Any) -> dict[str, Any]:
    policy = Policy.of(structure, {IMAGE_TOKENS.id: percent} if structure is STRUCTURE else {})
    return result_row(policy, speedup_predicted=3.0, speedup_measured=2.9, **values)


def document_of(*front: dict[str, Any]) -> dict[str, Any]:
    rows = dict.fromkeys(("dense", "uniform", "uniform_by_kind", "chosen"))
    return {**rows, "front": front, "chosen": front[0]}


def test_each_phase_has_a_factor_of_image_tokens_and_one_of_widths() -> None:
    parts = {"prefill": (2.5, 1.2), "decode": (1.004, 1.5)}
    row = row_of(25, trial=7, speedup_parts=parts)
    assert row["speedup_parts"] == {"prefill": [2.5, 1.2], "decode": [1.004, 1.5]}
    table = speedup_table(document_of(row))
    assert table is not None
    assert [heading.replace("\n", " ") for heading in table.columns] == [
        "policy", "image tokens", "prefill, image tokens", "prefill, widths",
        "decode, image tokens", "decode, widths", "speed-up", "speed-up measured",
    ]  # fmt: skip
    (only,) = table.rows
    assert only.cells == ("trial 7", "25 %", "2.50", "1.20", "1.00", "1.50", "3.00", "2.90")
    assert only.emphasized


def test_there_is_no_table_if_all_image_tokens_are_read_or_nothing_was_measured() -> None:
    alone = row_of(100, ModelStructure((MLP,)), trial=1, speedup_parts={"prefill": (1.0, 3.0)})
    assert speedup_table(document_of(alone)) is None
    assert speedup_table(document_of(row_of(25, trial=1))) is None
    older = row_of(25, trial=1)
    del older["speedup_parts"]
    assert speedup_table(document_of(older)) is None
