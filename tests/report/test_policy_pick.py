"""Picking a policy: the rule limits, validation ranks, test has no influence."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from effllava_optuna.errors import StudyError
from effllava_optuna.report import PickRule, pick_policy, pick_table, policy_pick
from tests.report.study_samples import CALIBRATION, CONFIG, facts, finished, record, width_of

if TYPE_CHECKING:
    from effllava_optuna.policy import ModelStructure
    from effllava_optuna.report import StudyFacts

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


@pytest.mark.parametrize(("limits", "expected"), [({}, 4), ({"speedup": 4.0}, 9)])
def test_among_equally_accurate_policies_the_better_on_the_proxy_is_picked(
    structure: ModelStructure, limits: dict[str, float], expected: int
) -> None:
    study = finished(structure, {"dense": [1] * 40} | dict.fromkeys(("4", "9", "7"), HITS["4"]))
    if study.results is None:
        raise AssertionError
    qualities = zip(study.results["front"], (0.9, 0.8, 0.7), strict=True)
    front = [row | {"quality": quality} for row, quality in qualities]
    study = replace(study, results={**study.results, "front": front})
    assert trial(pick_policy(study, PickRule(**limits))) == expected
    assert trial(pick_policy(study, PickRule(accuracy_drop=0.1, **limits))) == 7  # the fastest


def test_among_equally_accurate_policies_one_that_meets_the_budget_of_the_study_is_picked(
    structure: ModelStructure,
) -> None:
    config = CONFIG | {"search": {"speedup": 3}}
    study = finished(structure, HITS | {"9": HITS["4"]}, config=config)
    if study.results is None:
        raise AssertionError
    qualities = zip(study.results["front"], (0.9, 0.8, 0.7), strict=True)
    front = [row | {"quality": quality} for row, quality in qualities]
    study = replace(study, results={**study.results, "front": front})
    assert trial(pick_policy(study, PickRule())) == 9
    assert trial(pick_policy(study, PickRule(speedup=2.0))) == 4


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
        "trial 4", "trial 9 (picked)", "trial 7 (within limits)",
    ]  # fmt: skip
    assert width_of(table) <= 97  # with trials of four digits, 100
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
    assert "ms,\npredicted" in pick_table(pick).columns
    # The dense model has no scores on the proxy yet.
    assert pick_policy(study, PickRule(accuracy_drop=0.4))["confidence"]["accuracy_drop"] is None


def with_front(structure: ModelStructure) -> StudyFacts:
    """Return a finished study with two more policies on its front: 30 ms and 5 ms."""
    trials = [
        record(structure, number, quality, latency_ms, hits=hits)
        for number, quality, latency_ms, hits in (
            (4, 0.8, 25.0, (1.0, 1.0, 1.0, 0.0)),
            (5, 0.9, 30.0, (1.0, 1.0, 1.0, 1.0)),
            (6, 0.5, 5.0, (1.0, 0.0, 1.0, 0.0)),
        )
    ]
    return finished(structure, HITS, trials=trials, groups=[0, 1, 2, 3])


def test_the_rest_of_the_front_is_listed_without_values_on_validation(
    structure: ModelStructure,
) -> None:
    pick = pick_policy(with_front(structure), PickRule())
    assert [other["trial"] for other in pick["others"]] == [5, 6]
    assert not {5, 6} & set(pick["admissible"])
    table = pick_table(pick)
    assert len(table.columns) == 8
    assert width_of(table) <= 100
    assert table.rows[-1].cells == (
        "trial 6", "0.500", "not measured", "-", "(5.0)", "(10.00)", *table.rows[-1].cells[6:],
    )  # fmt: skip
    assert table.rows[-1].cells[-1] == "-"
    assert "that are no finalists (2 shown)" in "\n".join(table.notes)


def test_the_whole_front_is_picked_from_by_the_proxy(structure: ModelStructure) -> None:
    study = with_front(structure)
    pick = pick_policy(study, PickRule(speedup=8.0), "front")
    assert (trial(pick), pick["split"], pick["measured"]) == (6, "proxy", False)
    assert pick["others"] == []
    assert [candidate["trial"] for candidate in pick["candidates"]] == [5, 4, 6]
    assert pick["confidence"]["samples"] == 4
    assert "This trial was not measured on validation." in pick_table(pick).notes[0]
    finalist = pick_policy(study, PickRule(speedup=2.0, accuracy_drop=0.2), "front")
    assert trial(finalist) == 4
    assert "This trial is a finalist" in pick_table(finalist).notes[0]
    json.dumps(pick, allow_nan=False)


def test_limits_that_only_another_policy_satisfies_name_the_option(
    structure: ModelStructure,
) -> None:
    with pytest.raises(StudyError, match="None of the 3 finalists") as refused:
        pick_policy(with_front(structure), PickRule(speedup=9.0))
    assert refused.value.hint == (
        "Use a less strict limit, or --whole-front: trial 6 is within them by its 0.500 on the "
        "proxy and its predicted latency."
    )
    with pytest.raises(StudyError, match="None of the 3 policies on the front"):
        pick_policy(with_front(structure), PickRule(speedup=11.0), "front")


@pytest.mark.parametrize("count", [8, 40])
def test_of_a_long_front_some_policies_are_listed(structure: ModelStructure, count: int) -> None:
    trials = [record(structure, 10 + n, 0.5 + n / 100, 20.0 + n) for n in range(count)]
    pick = pick_policy(finished(structure, HITS, trials=trials), PickRule())
    assert len(pick["others"]) == count
    listed = [row.cells[0] for row in pick_table(pick).rows[3:]]
    assert len(listed) == 8
    assert (listed[0], listed[-1]) == (f"trial {9 + count}", "trial 10")
    assert f"({'8 of 40' if count == 40 else '8'} shown)" in pick_table(pick).notes[-1]


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
