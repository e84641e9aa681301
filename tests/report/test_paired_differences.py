"""Paired differences between the chosen policy and its baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from effllava_optuna.report import comparison_sentence, study_document
from effllava_optuna.report.paired_differences import paired_difference
from tests.report.study_samples import finished

if TYPE_CHECKING:
    from effllava_optuna.policy import ModelStructure

DENSE, CHOSEN, UNIFORM = [1] * 40, [1] * 30 + [0] * 10, [1] * 8 + [0] * 32


def test_the_interval_of_a_difference_is_paired() -> None:
    # Separate intervals have a half width of .15; paired, the first policy is never worse.
    hits = {"a": [1, 0] * 20, "b": [1, 0] * 19 + [0, 0]}
    difference = paired_difference({"groups": list(range(40)), "hits": hits}, "a", "b")
    assert difference["difference"] == pytest.approx(1 / 40)
    low, high = difference["interval"]
    assert low == 0.0
    assert high < 0.1


def test_the_chosen_policy_is_compared_on_validation_and_test(structure: ModelStructure) -> None:
    hits = {"dense": DENSE, "uniform_by_kind": UNIFORM, "4": CHOSEN}
    comparisons = study_document(finished(structure, hits))["comparisons"]
    by_baseline = {(pair["baseline"], pair["split"]): pair for pair in comparisons}
    assert set(by_baseline) == {
        (baseline, split)
        for baseline in ("dense", "uniform_by_kind")
        for split in ("validation", "test")
    }
    assert by_baseline["uniform_by_kind", "test"]["difference"] == pytest.approx(22 / 40)
    assert by_baseline["uniform_by_kind", "test"]["positive_fraction"] == 1.0


UNIFORM_NAME = "the best uniform-by-kind policy"


@pytest.mark.parametrize(
    ("measure", "interval", "verdict"),
    [
        ("accuracy", [0.1, 0.3], f"is more accurate than {UNIFORM_NAME}: difference +0.200"),
        ("accuracy", [-0.3, -0.1], f"is less accurate than {UNIFORM_NAME}"),
        ("accuracy", [0.0, 0.3], f"does not differ significantly from {UNIFORM_NAME}"),
        ("agreement", [0.1, 0.3], f"agrees with the dense model more than {UNIFORM_NAME}"),
        ("agreement", [-0.3, -0.1], f"agrees with the dense model less than {UNIFORM_NAME}"),
        ("agreement", [0.0, 0.3], f"does not differ significantly from {UNIFORM_NAME}"),
    ],
)
def test_an_interval_that_contains_zero_decides_nothing(
    measure: str, interval: list[float], verdict: str
) -> None:
    pair = {
        "baseline": "uniform_by_kind", "split": "test", "measure": measure, "difference": 0.2,
        "interval": interval,
    }  # fmt: skip
    assert comparison_sentence(pair).startswith(f"On test, the chosen policy {verdict}")


def test_a_study_without_a_uniform_baseline_is_compared_with_the_dense_model(
    structure: ModelStructure,
) -> None:
    document = study_document(finished(structure, {"dense": DENSE, "4": CHOSEN}))
    assert {pair["baseline"] for pair in document["comparisons"]} == {"dense"}
