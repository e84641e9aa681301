"""The confidence of a pick, from resampled samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from effllava_optuna.report import PickRule, pick_policy
from effllava_optuna.report.pick_confidence import confidence_notes
from tests.report.study_samples import finished

if TYPE_CHECKING:
    from effllava_optuna.policy import ModelStructure

HITS = {
    "dense": [1] * 40,
    "4": [1] * 38 + [0] * 2,
    "9": [1] * 30 + [0] * 10,
    "7": [1] * 10 + [0] * 30,
}


def picked(
    structure: ModelStructure, hits: dict[str, list[int]], **limits: float
) -> tuple[dict[str, Any], str]:
    """Return the confidence of a pick, and its notes."""
    pick = pick_policy(finished(structure, hits), PickRule(**limits))
    return pick["confidence"], "\n".join(confidence_notes(pick))


def test_a_large_difference_is_certain(structure: ModelStructure) -> None:
    confidence, notes = picked(structure, HITS)
    assert confidence["best_fraction"] > 0.99
    assert confidence["runner_up"]["trial"] == 9
    assert "others are about as accurate" not in notes


def test_a_small_difference_is_uncertain(structure: ModelStructure) -> None:
    # Each is right where the other is wrong, except for one sample.
    hits = HITS | {"4": [1] * 21 + [0] * 19, "9": [0] * 20 + [1] * 20, "7": [0] * 40}
    confidence, notes = picked(structure, hits)
    assert 0.4 < confidence["best_fraction"] < 0.75
    low, high = confidence["runner_up"]["interval"]
    assert low < 0 < high
    assert "others are about as accurate" in notes


def test_policies_with_equal_answers_are_equally_good_picks(structure: ModelStructure) -> None:
    pick = pick_policy(finished(structure, HITS | {"9": HITS["4"]}), PickRule())
    assert pick["picked"]["trial"] == 9  # the faster one
    assert pick["confidence"]["best_fraction"] == pytest.approx(1.0)
    assert pick["confidence"]["only_best_fraction"] == pytest.approx(0.0)
    notes = "\n".join(confidence_notes(pick))
    assert "Trial 4 is as accurate: the difference is 0.000 [" in notes
    assert (
        "the pick is among the best of these 3 in 100% of cases, and the only best in 0%: others "
        "are about as accurate."
    ) in notes


def test_a_drop_at_its_limit_is_uncertain(structure: ModelStructure) -> None:
    confidence, notes = picked(structure, HITS, accuracy_drop=0.05)
    drop = confidence["accuracy_drop"]
    assert drop["value"] == pytest.approx(0.05)
    assert drop["interval"][0] <= 0.05 <= drop["interval"][1]
    assert 0.5 < drop["within_fraction"] < 0.8  # 2 of 40: 68 % of resamples have 0, 1 or 2
    assert "not certain" in notes
    _, notes = picked(structure, HITS, accuracy_drop=0.2)
    assert "not certain" not in notes
