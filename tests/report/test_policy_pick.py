"""Picking a policy: the rule limits, validation ranks, test has no influence."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from effllava_optuna.errors import StudyError
from effllava_optuna.report import PickRule, pick_policy, pick_table, policy_pick
from tests.report.study_samples import CALIBRATION, facts, finished, record

if TYPE_CHECKING:
    from effllava_optuna.policy import ModelStructure

# 25 ms, 12.5 ms and 6.25 ms, of a dense model of 50 ms.
HITS = {
    "dense": [1] * 40,
    "uniform_by_kind": [1] * 20 + [0] * 20,
    "4": [1] * 38 + [0] * 2,
    "9": [1] * 30 + [0] * 10,
    "7": [1] * 10 + [0] * 30,
}


def trial(pick: dict[str, Any]) -> int:
    return int(pick["picked"]["trial"])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (PickRule(), 4),
        (PickRule(latency_ms=12.5), 9),
        (PickRule(latency_ms=12.4), 7),
        (PickRule(speedup=4.0), 9),
        (PickRule(speedup=4.1), 7),
        (PickRule(speedup=4.004), 7),
        (PickRule(accuracy_drop=0.05), 4),
        (PickRule(accuracy_drop=0.25), 9),
        (PickRule(accuracy_drop=1.0), 7),
        (PickRule(accuracy_drop=1.0, latency_ms=100.0, speedup=1.0, params=1.0), 7),
    ],
)
def test_the_best_policy_within_the_limits_is_picked(
    structure: ModelStructure, rule: PickRule, expected: int
) -> None:
    pick = pick_policy(finished(structure, HITS), rule)
    assert trial(pick) == expected
    assert pick["split"] == "validation"
    json.dumps(pick, allow_nan=False)


@pytest.mark.parametrize(
    ("bound", "speedup", "admitted"),
    [(2.24, 2.2361, True), (2.24, 2.2349, False), (2.237, 2.2361, False), (2.236, 2.2361, True)],
)
def test_a_limit_as_the_table_shows_it_is_met(
    bound: float, speedup: float, admitted: bool
) -> None:
    (limit,) = policy_pick._limits(PickRule(speedup=bound))
    assert limit.admits({"speedup": speedup}) is admitted


def test_the_table_marks_the_pick_and_the_policies_within_the_limits(
    structure: ModelStructure,
) -> None:
    table = pick_table(pick_policy(finished(structure, HITS), PickRule(speedup=3.0)))
    assert [row.cells[0] for row in table.rows] == [
        "trial 4", "trial 9 (picked)", "trial 7 (within the limits)",
    ]  # fmt: skip
    assert [row.emphasized for row in table.rows] == [False, True, False]


def test_the_limit_on_parameters_is_a_fraction_of_the_dense_model(
    structure: ModelStructure,
) -> None:
    study = finished(structure, HITS)
    if study.results is None:
        raise AssertionError
    sizes = zip(study.results["front"], (600, 601, 300), strict=True)
    front = [row | {"parameters": size} for row, size in sizes]
    study = replace(study, results={**study.results, "front": front})
    assert trial(pick_policy(study, PickRule(params=0.6))) == 4
    assert trial(pick_policy(study, PickRule(params=0.5))) == 7


def test_limits_that_no_policy_satisfies_are_named_with_the_closest_policy(
    structure: ModelStructure,
) -> None:
    with pytest.raises(StudyError, match=r"at most 5 ms \(the closest has 6.2: trial 7\)"):
        pick_policy(finished(structure, HITS), PickRule(latency_ms=5.0))
    with pytest.raises(StudyError, match=r"at most 0.01 \(the closest has 0.0500: trial 4"):
        pick_policy(finished(structure, HITS), PickRule(accuracy_drop=0.01))


def test_accuracy_on_test_does_not_change_the_pick(structure: ModelStructure) -> None:
    study = finished(structure, HITS)
    if study.results is None:
        raise AssertionError
    inverted = [
        row | {"accuracy_test": 1 - row["accuracy_test"]} for row in study.results["front"]
    ]
    other = replace(study, results={**study.results, "front": inverted})
    for rule in (PickRule(), PickRule(speedup=3.0), PickRule(accuracy_drop=0.2)):
        pick, other_pick = pick_policy(study, rule), pick_policy(other, rule)
        assert trial(pick) == trial(other_pick)
        assert pick["confidence"] == other_pick["confidence"]


def test_a_policy_of_a_study_under_way_is_picked_on_the_proxy(structure: ModelStructure) -> None:
    trials = [
        record(structure, 0, 0.75, 20.0, hits=(1.0, 1.0, 1.0, 0.0)),
        record(structure, 1, 0.5, 10.0, hits=(1.0, 1.0, 0.0, 0.0)),
    ]
    study = facts(structure, *trials, calibration=CALIBRATION, groups=[0, 1, 2, 3])
    pick = pick_policy(study, PickRule(speedup=4.0))
    assert trial(pick) == 1
    assert (pick["split"], pick["measured"]) == ("proxy", False)
    assert pick["confidence"]["samples"] == 4
    assert "ms, predicted" in pick_table(pick).columns
    # The dense model has no scores on the proxy yet.
    assert pick_policy(study, PickRule(accuracy_drop=0.4))["confidence"]["accuracy_drop"] is None


def test_a_study_without_a_front_is_refused(structure: ModelStructure) -> None:
    with pytest.raises(StudyError, match="no policy on its front yet"):
        pick_policy(facts(structure, calibration=CALIBRATION), PickRule())


def test_the_parameters_of_a_trial_include_those_that_cannot_be_pruned(
    structure: ModelStructure,
) -> None:
    narrow = record(structure, 0, 0.5, 10.0)
    dense = CALIBRATION["dense"] | {"parameters": structure.parameters + 77}
    study = facts(structure, narrow, calibration=CALIBRATION | {"dense": dense})
    (candidate,) = pick_policy(study, PickRule())["candidates"]
    kept = sum(component.floor * component.unit_params for component in structure.components)
    assert candidate["params"] == pytest.approx(
        (kept + 77) / (structure.parameters + 77), abs=1e-6
    )
