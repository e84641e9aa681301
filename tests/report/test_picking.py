"""Picking from a front: the rule decides, validation ranks, test never does."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from effllava_optuna.errors import StudyError
from effllava_optuna.report import Rule, pick, picked
from tests.report.made import BUNDLE, facts, finished, record

if TYPE_CHECKING:
    from effllava_optuna.policy import Anatomy

# 25 ms, 12.5 ms and 6.25 ms, of a dense model of 50 ms.
HITS = {
    "dense": [1] * 40,
    "uniform2": [1] * 20 + [0] * 20,
    "4": [1] * 38 + [0] * 2,
    "9": [1] * 30 + [0] * 10,
    "7": [1] * 10 + [0] * 30,
}


def trial(found: dict[str, Any]) -> int:
    return int(found["picked"]["trial"])


def told(found: dict[str, Any]) -> str:
    console = Console(width=1000, record=True, file=io.StringIO())
    console.print(picked(found))
    return console.export_text()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule(), 4),
        (Rule(latency_ms=12.5), 9),
        (Rule(latency_ms=12.4), 7),
        (Rule(speedup=4.0), 9),
        (Rule(speedup=4.1), 7),
        (Rule(accuracy_drop=0.05), 4),
        (Rule(accuracy_drop=0.25), 9),
        (Rule(accuracy_drop=1.0), 7),
        (Rule(accuracy_drop=1.0, latency_ms=100.0, speedup=1.0, params=1.0), 7),
    ],
)
def test_of_what_keeps_to_the_rule_the_best_is_picked(
    anatomy: Anatomy, rule: Rule, expected: int
) -> None:
    found = pick(finished(anatomy, HITS), rule)
    assert trial(found) == expected
    assert found["split"] == "validation"
    json.dumps(found, allow_nan=False)


def test_parameters_are_a_share_of_the_dense_model(anatomy: Anatomy) -> None:
    study = finished(anatomy, HITS)
    if study.results is None:
        raise AssertionError
    sizes = zip(study.results["front"], (600, 601, 300), strict=True)
    front = [row | {"parameters": size} for row, size in sizes]
    study = replace(study, results={**study.results, "front": front})
    assert trial(pick(study, Rule(params=0.6))) == 4
    assert trial(pick(study, Rule(params=0.5))) == 7


def test_a_rule_that_nobody_keeps_to_names_the_closest(anatomy: Anatomy) -> None:
    with pytest.raises(StudyError, match=r"at most 5 ms \(the closest has 6.2: trial 7\)"):
        pick(finished(anatomy, HITS), Rule(latency_ms=5.0))
    with pytest.raises(StudyError, match=r"at most 0.01 \(the closest has 0.0500: trial 4"):
        pick(finished(anatomy, HITS), Rule(accuracy_drop=0.01))


def test_test_plays_no_part(anatomy: Anatomy) -> None:
    study = finished(anatomy, HITS)
    if study.results is None:
        raise AssertionError
    turned = [r | {"accuracy_test": 1 - r["accuracy_test"]} for r in study.results["front"]]
    other = replace(study, results={**study.results, "front": turned})
    for rule in (Rule(), Rule(speedup=3.0), Rule(accuracy_drop=0.2)):
        assert trial(pick(study, rule)) == trial(pick(other, rule))
        assert pick(study, rule)["sure"] == pick(other, rule)["sure"]


def test_it_is_sure_of_a_clear_lead_and_unsure_of_a_close_one(anatomy: Anatomy) -> None:
    clear = pick(finished(anatomy, HITS), Rule())
    assert clear["sure"]["best"] > 0.99
    assert clear["sure"]["runner_up"]["trial"] == 9
    assert "others are about as good" not in told(clear)
    # Each is right where the other is wrong, but for one sample.
    even = HITS | {"4": [1] * 21 + [0] * 19, "9": [0] * 20 + [1] * 20, "7": [0] * 40}
    close = pick(finished(anatomy, even), Rule())
    assert 0.4 < close["sure"]["best"] < 0.75
    low, high = close["sure"]["runner_up"]["interval"]
    assert low < 0 < high
    assert "others are about as good" in told(close)


def test_policies_that_answer_alike_are_equally_good_picks(anatomy: Anatomy) -> None:
    alike = HITS | {"9": HITS["4"]}
    found = pick(finished(anatomy, alike), Rule())
    assert trial(found) == 9  # the faster one
    assert found["sure"]["best"] == pytest.approx(1.0)


def test_a_drop_at_its_limit_is_not_sure(anatomy: Anatomy) -> None:
    found = pick(finished(anatomy, HITS), Rule(accuracy_drop=0.05))
    drop = found["sure"]["drop"]
    assert drop["value"] == pytest.approx(0.05)
    assert drop["interval"][0] <= 0.05 <= drop["interval"][1]
    assert 0.5 < drop["within"] < 0.8  # two of forty: the resamples have 0, 1 or 2 in 68 %
    assert "not sure" in told(found)
    assert "not sure" not in told(pick(finished(anatomy, HITS), Rule(accuracy_drop=0.2)))


def test_without_scores_of_samples_it_says_so(anatomy: Anatomy) -> None:
    found = pick(finished(anatomy, HITS, scores=None), Rule())
    assert found["sure"] is None
    assert "cannot be said" in told(found)


def test_a_study_under_way_is_picked_from_by_the_proxy(anatomy: Anatomy) -> None:
    mine = [
        record(anatomy, 0, 0.75, 20.0, hits=(1.0, 1.0, 1.0, 0.0)),
        record(anatomy, 1, 0.5, 10.0, hits=(1.0, 1.0, 0.0, 0.0)),
    ]
    study = facts(anatomy, *mine, bundle=BUNDLE, units=[0, 1, 2, 3], spec={})
    found = pick(study, Rule(speedup=4.0))
    assert trial(found) == 1
    assert (found["split"], found["measured"]) == ("proxy", False)
    assert found["sure"]["samples"] == 4
    assert "ms, predicted" in told(found)
    assert pick(study, Rule(accuracy_drop=0.4))["sure"]["drop"] is None


def test_a_study_without_a_front_says_what_to_do(anatomy: Anatomy) -> None:
    with pytest.raises(StudyError, match="no policy on its front yet"):
        pick(facts(anatomy, bundle=BUNDLE), Rule())
    with pytest.raises(StudyError, match="no policy on its front yet"):
        pick(facts(None), Rule())


def test_predicted_parameters_are_those_that_are_counted(anatomy: Anatomy) -> None:
    small = record(anatomy, 0, 0.5, 10.0)
    dense: Any = BUNDLE["dense"]
    bundle = BUNDLE | {"dense": dense | {"parameters": anatomy.parameters + 77}}
    (mine,) = pick(facts(anatomy, small, bundle=bundle), Rule())["candidates"]
    kept = sum(site.floor * site.unit_params for site in anatomy.sites)
    assert mine["params"] == pytest.approx((kept + 77) / (anatomy.parameters + 77), abs=1e-6)
