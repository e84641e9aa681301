"""Latency tables of models that read fewer image tokens."""

from __future__ import annotations

import pytest

from effllava_optuna.calibration.latency_file import facts_of, restored_table
from effllava_optuna.objectives import LatencyTable
from effllava_optuna.policy import IMAGE_TOKENS, Component, Kind, ModelStructure, Policy

MLP = Component("language", 0, Kind.MLP, 4, 10)
STRUCTURE = ModelStructure((IMAGE_TOKENS, MLP))


def table_of(dense: float, saved: float, decode: float = 1.0) -> LatencyTable:
    return LatencyTable(
        new_tokens=3,
        vision_ms=7.0,
        dense_ms={"prefill": dense, "decode": decode},
        saved_ms={
            "prefill": {MLP.id: {2: -saved, 4: 0.0}},
            "decode": {MLP.id: {2: -0.5 * decode, 4: 0.0}},
        },
        friendly={MLP.id: (2, 4)},
        errors=(),
        spread=None,
    )


WHOLE = table_of(100.0, 40.0)
FEWER = table_of(1000.0, 500.0, 2.0).relative_to(WHOLE, {"prefill": 0.4, "decode": 0.9})
TABLE = LatencyTable(**{**vars(WHOLE), "fewer": {25: FEWER}})


def policy(tokens: int, width: int) -> Policy:
    return Policy.of(STRUCTURE, {IMAGE_TOKENS.id: tokens, MLP.id: width})


def test_a_table_is_put_beside_another_one() -> None:
    assert FEWER.dense_ms == pytest.approx({"prefill": 40.0, "decode": 0.9})
    assert FEWER.saved_ms["prefill"][MLP.id][2] == pytest.approx(-20.0)
    assert FEWER.saved_ms["decode"][MLP.id][2] == pytest.approx(-0.45)
    assert FEWER.vision_ms == 7.0


def test_tokens_and_widths_multiply() -> None:
    assert TABLE.predict(policy(100, 4)) == pytest.approx(7 + 100 + 2 * 1.0)
    assert TABLE.predict(policy(100, 2)) == pytest.approx(7 + 60 + 2 * 0.5)
    assert TABLE.predict(policy(25, 4)) == pytest.approx(7 + 40 + 2 * 0.9)
    assert TABLE.predict(policy(25, 2)) == pytest.approx(7 + 20 + 2 * 0.45)
    assert TABLE.dense_total_ms == pytest.approx(109)


def test_a_speedup_is_that_of_the_tokens_times_that_of_the_widths() -> None:
    parts = TABLE.speedup_parts(policy(25, 2))
    assert parts["prefill"] == pytest.approx((100 / 40, 40 / 20))
    assert parts["decode"] == pytest.approx((1 / 0.9, 0.9 / 0.45))
    assert TABLE.speedup_parts(policy(25, 4))["prefill"] == pytest.approx((100 / 40, 1))
    assert TABLE.speedup_parts(policy(100, 2))["prefill"] == pytest.approx((1, 100 / 60))


def test_a_table_is_restored_with_those_of_fewer_tokens() -> None:
    assert restored_table(facts_of(TABLE)) == TABLE
    old = facts_of(WHOLE)
    del old["fewer"]
    assert restored_table(old) == WHOLE
