"""How the choice compares with its rivals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from effllava_optuna.report import document
from effllava_optuna.report.sureness import difference, verdict
from effllava_optuna.report.tables import notes
from tests.report.made import finished

if TYPE_CHECKING:
    from effllava_optuna.policy import Anatomy

DENSE, CHOSEN, LESS = [1] * 40, [1] * 30 + [0] * 10, [1] * 8 + [0] * 32


def test_a_difference_is_paired() -> None:
    # Apart, each has an interval of +-.15; together, one never does worse than the other.
    hits = {"a": [1, 0] * 20, "b": [1, 0] * 19 + [0, 0]}
    found = difference({"units": list(range(40)), "hits": hits}, "a", "b")
    assert found["difference"] == pytest.approx(1 / 40)
    low, high = found["interval"]
    assert low == 0.0
    assert high < 0.1
    assert verdict(found) == "cannot be told from"


def test_the_choice_is_compared_on_validation_and_test(anatomy: Anatomy) -> None:
    hits = {"dense": DENSE, "uniform2": LESS, "4": CHOSEN}
    found = document(finished(anatomy, hits))
    told = {(c["rival"], c["split"]): c for c in found["comparisons"]}
    assert set(told) == {(r, s) for r in ("dense", "uniform2") for s in ("validation", "test")}
    assert told["uniform2", "test"]["difference"] == pytest.approx(22 / 40)
    assert told["uniform2", "test"]["ahead"] == 1.0
    said = " ".join(notes(found))
    assert "the choice is behind the dense model: -0.250 [" in said
    assert "the choice is ahead of the best two-number policy: +0.550 [" in said


def test_a_choice_that_is_not_ahead_is_called_that(anatomy: Anatomy) -> None:
    hits = {"dense": DENSE, "uniform2": CHOSEN, "4": CHOSEN}
    said = " ".join(notes(document(finished(anatomy, hits))))
    assert "the choice cannot be told from the best two-number policy: +0.000 [" in said


def test_a_study_without_a_baseline_or_of_an_earlier_version_is_read(anatomy: Anatomy) -> None:
    hits = {"dense": DENSE, "uniform2": LESS, "4": CHOSEN}
    assert document(finished(anatomy, hits, scores=None))["comparisons"] == []
    answered = {"units": list(range(40)), "hits": {"dense": DENSE, "4": CHOSEN}}
    scores = {"validation": answered, "test": answered}
    found = document(finished(anatomy, hits, scores=scores))
    assert {c["rival"] for c in found["comparisons"]} == {"dense"}
