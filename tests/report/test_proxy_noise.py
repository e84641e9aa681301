"""The noise of the proxy set: choices and differences in quality on other draws of its samples."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from effllava_optuna.report import noise_notes, policy_table, study_document
from effllava_optuna.report.proxy_noise import resolution_notes
from tests.report.study_samples import CALIBRATION, facts, finished, record, text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.policy import ModelStructure, TrialRecord
    from effllava_optuna.report import StudyFacts

SAMPLES = 40
SURE = [0.9] * SAMPLES  # the same quality on every draw
HALF = [1.0, 0.0] * (SAMPLES // 2)  # 0.5, with a standard error of 0.5 / sqrt(40)


def scored(
    structure: ModelStructure, number: int, scores: Sequence[float], **changes: Any
) -> TrialRecord:
    """Return a trial with these scores, the only one of its widths; its risk costs 0.1."""
    fields: dict[str, Any] = {
        "widths": (1, number + 1, 1, 8, 1, 1),
        "quality_scores": tuple(scores),
    }
    quality = sum(scores) / len(scores) - 0.1
    return record(structure, number, quality, 20.0 + number, **(fields | changes))


def noise_of(study: StudyFacts) -> dict[str, Any]:
    noise: dict[str, Any] = study_document(study)["noise"]
    return noise


def searched(structure: ModelStructure, *trials: TrialRecord, **changes: Any) -> StudyFacts:
    fields: dict[str, Any] = {"calibration": CALIBRATION, "groups": list(range(SAMPLES))}
    return facts(structure, *trials, **(fields | changes))


def test_a_policy_that_is_better_on_every_sample_is_chosen_on_every_draw(
    structure: ModelStructure,
) -> None:
    worse = [score - 0.2 for score in SURE]
    noise = noise_of(searched(structure, scored(structure, 0, SURE), scored(structure, 1, worse)))
    assert noise["best"] == {"trial": 0, "fraction": 1.0}
    assert noise["winners"] == [noise["best"]]
    assert noise["second"] == {"trial": 1, "difference": 0.2, "deviation": 0.0, "floor": 0.0}
    assert (noise["samples"], noise["groups"], noise["policies"]) == (SAMPLES, SAMPLES, 2)
    assert noise["chosen"] is None
    assert noise["uniform_by_kind"] is None


def test_the_deviation_of_a_difference_is_its_standard_error(structure: ModelStructure) -> None:
    even = [0.5] * SAMPLES
    noise = noise_of(searched(structure, scored(structure, 0, HALF), scored(structure, 1, even)))
    assert noise["second"]["difference"] == 0.0
    assert noise["second"]["deviation"] == pytest.approx(0.5 / math.sqrt(SAMPLES), rel=0.05)
    assert noise["second"]["floor"] == pytest.approx(1.96 * noise["second"]["deviation"], abs=1e-5)
    # Of two equal qualities the faster policy is on the front; it is ahead on half of the draws.
    assert noise["best"]["trial"] == 0
    assert noise["best"]["fraction"] == pytest.approx(0.56, abs=0.05)


def test_samples_of_one_group_are_drawn_together(structure: ModelStructure) -> None:
    grouped = [1.0] * (SAMPLES // 2) + [0.0] * (SAMPLES // 2)
    trials = scored(structure, 0, grouped), scored(structure, 1, [0.5] * SAMPLES)
    apart = noise_of(searched(structure, *trials))
    together = noise_of(
        searched(structure, *trials, groups=[index // 10 for index in range(SAMPLES)])
    )
    assert together["groups"] == 4
    assert together["second"]["deviation"] > 2.5 * apart["second"]["deviation"]


def test_the_noise_is_that_of_the_quality_not_of_the_accuracy(structure: ModelStructure) -> None:
    higher = [score + 0.05 for score in SURE]
    cheap = scored(structure, 0, SURE)
    dear = dataclasses.replace(scored(structure, 1, higher), quality=0.7)
    noise = noise_of(searched(structure, cheap, dear))
    assert noise["best"] == {"trial": 0, "fraction": 1.0}


def test_a_policy_that_was_measured_twice_counts_once(structure: ModelStructure) -> None:
    twin = dataclasses.replace(scored(structure, 0, SURE), number=7)
    elsewhere = dataclasses.replace(twin, number=8, weight_state="c")
    trials = scored(structure, 0, SURE), scored(structure, 1, HALF)
    assert noise_of(searched(structure, *trials, twin))["policies"] == 2
    assert noise_of(searched(structure, *trials, twin, elsewhere))["policies"] == 3


def test_trials_that_cannot_be_chosen_do_not_compete(structure: ModelStructure) -> None:
    trials = scored(structure, 0, HALF), scored(structure, 1, HALF[::-1])
    over_budget = scored(structure, 2, SURE, feasible=False)
    enqueued = scored(structure, 3, SURE, kind="user")
    assert noise_of(searched(structure, *trials, over_budget, enqueued))["policies"] == 2


@pytest.mark.parametrize("case", ["no scores", "one policy", "one group", "no groups"])
def test_a_study_whose_noise_is_unknown_is_reported_without_it(
    structure: ModelStructure, case: str
) -> None:
    first, second = scored(structure, 0, HALF), scored(structure, 1, SURE)
    study = {
        "no scores": searched(structure, first, scored(structure, 1, SURE, quality_scores=())),
        "one policy": searched(structure, first),
        "one group": searched(structure, first, second, groups=[0] * SAMPLES),
        "no groups": searched(structure, first, second, groups=None),
    }[case]
    document = study_document(study)
    assert document["noise"] is None
    assert noise_notes(document) == resolution_notes(document) == []
    assert "draw" not in text_of(policy_table(document))


def finished_with_scores(structure: ModelStructure) -> StudyFacts:
    """Return a finished study that chose trial 5, the second by quality."""
    hits = {"dense": [1] * SAMPLES, "uniform_by_kind": [1, 0] * 20, "5": [1] * SAMPLES}
    better = [0.7 + 0.01 * (-1) ** index for index in range(SAMPLES)]
    scores = {"5": SURE, "uniform_by_kind": better, "dense": SURE}
    study = finished(
        structure,
        hits,
        trials=[
            scored(structure, 5, SURE),
            scored(structure, 6, [score + 0.01 for score in SURE]),
        ],
        groups=list(range(SAMPLES)),
    )
    stored = dict(study.scores or {})
    proxy = {**stored["proxy"], "quality_scores": scores}
    return dataclasses.replace(study, scores=stored | {"proxy": proxy})


def test_the_chosen_policy_is_compared_with_the_uniform_baseline(
    structure: ModelStructure,
) -> None:
    study = finished_with_scores(structure)
    document = study_document(study)
    noise = document["noise"]
    assert noise["chosen"] == {"trial": 5, "fraction": 0.0}
    assert noise["finalists_fraction"] == 0.0
    # In this study, the quality of a row is its accuracy: 1.0 and 0.5.
    assert noise["uniform_by_kind"]["difference"] == 0.5
    exact = 0.01 / math.sqrt(SAMPLES)
    assert noise["uniform_by_kind"]["deviation"] == pytest.approx(exact, rel=0.05)
    stored = dict(study.scores or {})
    older = dataclasses.replace(study, scores=stored | {"proxy": stored["test"]})
    assert study_document(older)["noise"]["uniform_by_kind"] is None


def test_the_notes_state_the_fraction_and_the_floor_beside_the_differences(
    structure: ModelStructure,
) -> None:
    choice, second, baseline = noise_notes(study_document(finished_with_scores(structure)))
    assert choice == (
        "On another draw of the 40 proxy samples, the best of 2 policies by quality would be "
        "trial 6 in 100% of 2,000 resamples (trial 5 (chosen) in 0%), and one of the finalists in "
        "0%."
    )
    assert second == (
        "Trial 6 exceeds trial 5, the second, by 0.0100 in quality on the proxy; the standard "
        "deviation over draws is 0.0000: differences below 0.0000 are within the noise of the "
        "draw."
    )
    assert baseline.startswith("The chosen policy exceeds the best uniform-by-kind policy by +0.5")


def test_the_notes_say_that_no_policy_is_ahead_in_most_draws(structure: ModelStructure) -> None:
    document = study_document(finished_with_scores(structure))
    noise = document["noise"] | {"best": {"trial": 6, "fraction": 0.49}}
    choice, *_ = noise_notes(document | {"noise": noise})
    assert choice.endswith("and one of the finalists in 0%: none is ahead in most of them.")


def test_policies_within_the_noise_of_the_best_are_counted(structure: ModelStructure) -> None:
    lower = [score - 0.02 for score in HALF]
    trials = (
        scored(structure, 0, HALF),  # the best
        scored(structure, 1, HALF[::-1]),  # the same mean, from other samples
        scored(structure, 2, lower),  # below the best on each sample
        scored(structure, 3, [0.9 * score for score in HALF[::-1]]),  # 0.05 lower, deviation 0.15
    )
    assert noise_of(searched(structure, *trials))["as_good"] == 3


def test_the_table_has_one_sentence_on_the_noise(structure: ModelStructure) -> None:
    document = study_document(finished_with_scores(structure))
    (sentence,) = resolution_notes(document)
    assert sentence == (
        "By the 40 proxy samples alone, 1 of the 2 policies could be the best: their quality "
        "differs from that of trial 6 by no more than the noise of these samples."
    )
    assert [note for note in policy_table(document).notes if "noise" in note] == [sentence]


def test_the_fractions_equal_those_of_separate_draws(structure: ModelStructure) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((5, SAMPLES)) * 0.1
    trials = [scored(structure, number, row) for number, row in enumerate(scores)]
    noise = noise_of(searched(structure, *trials))
    draws = [rng.integers(SAMPLES, size=SAMPLES) for _ in range(4000)]
    winners = np.array([scores[:, draw].mean(1).argmax() for draw in draws])
    for winner in noise["winners"]:
        assert winner["fraction"] == pytest.approx((winners == winner["trial"]).mean(), abs=0.04)
