"""Figures of accuracy: the front of each epoch, and the intervals on test."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from effllava_optuna.policy import Policy
from effllava_optuna.report import StudyFacts, result_row
from tests.report.study_samples import figures_of, legend_of, two_epochs

if TYPE_CHECKING:
    from effllava_optuna.policy import ModelStructure


def measured(structure: ModelStructure) -> StudyFacts:
    """Return the facts of a finished study with two finalists."""

    def row(trial: int | None, proxy: float, test: float, latency_ms: float) -> dict[str, Any]:
        return result_row(
            Policy.dense(structure), trial=trial, epoch=1, latency_ms=latency_ms,
            latency_ms_measured=0.8 * latency_ms,
            speedup_predicted=50.0 / latency_ms, speedup_measured=60.0 / latency_ms,
            accuracy_proxy=proxy, accuracy_proxy_interval=(proxy - 0.1, proxy + 0.05),
            accuracy_test=test, accuracy_test_interval=(test - 0.02, test + 0.03),
            accuracy_validation=test, accuracy_validation_interval=(test - 0.1, test + 0.1),
        )  # fmt: skip

    front = [row(7, 0.85, 0.8, 41.0), row(4, 0.7, 0.6, 32.0)]
    results = {
        "dense": row(None, 0.9, 0.88, 50.0), "uniform": row(None, 0.5, 0.4, 30.0),
        "uniform_by_kind": row(None, 0.6, 0.5, 35.0), "front": front, "chosen": front[0],
    }  # fmt: skip
    scores: dict[str, Any] = {
        split: {"groups": [], "hits": {}} for split in ("validation", "test")
    }
    return two_epochs(structure, results=results, scores=scores)


def test_the_front_of_each_epoch_has_a_colour_and_the_accuracy_of_the_quality(
    structure: ModelStructure,
) -> None:
    lines = legend_of(figures_of(two_epochs(structure))["front_by_epoch"])
    assert lines["epoch 1"].line.color != lines["epoch 2"].line.color
    assert list(lines["epoch 1"].y) == pytest.approx([0.45, 0.5, 0.55, 0.6])
    hard = legend_of(figures_of(two_epochs(structure, accuracy="hard"))["front_by_epoch"])
    assert list(hard["epoch 1"].y) == pytest.approx([0.5, 0.55, 0.6, 0.65])


def test_the_axis_is_the_speedup_predicted_or_measured(structure: ModelStructure) -> None:
    before = figures_of(two_epochs(structure))["front_by_epoch"]
    trials = sorted(two_epochs(structure).trials[:4], key=lambda trial: trial.latency_ms)
    assert list(legend_of(before)["epoch 1"].x) == pytest.approx(
        [50.0 / trial.latency_ms for trial in trials], abs=1e-3
    )
    title = "times as fast as the dense model (50.0 ms, predicted)"
    assert before.layout.xaxis.title.text == title
    assert "diamonds" not in before.layout.title.text
    after = figures_of(measured(structure))["front_by_epoch"]
    title = "times as fast as the dense model (40.0 ms, measured)"
    assert after.layout.xaxis.title.text == title
    assert "measured speed-up" in after.layout.title.text
    assert min(legend_of(after)["dense, test"].x) >= 1


def test_policies_measured_at_the_end_have_intervals(structure: ModelStructure) -> None:
    points = legend_of(figures_of(measured(structure))["front_by_epoch"])
    assert {
        "dense, test", "uniform, test", "uniform by kind, test", "finalists, test",
        "chosen, test", "all on validation",
    } < set(points)  # fmt: skip
    chosen = points["chosen, test"]
    assert (list(chosen.x), list(chosen.y)) == ([1.463], [0.8])  # 60 / 41: the measured speed-up
    assert list(chosen.error_y.array) == [0.03]
    assert list(chosen.error_y.arrayminus) == [0.02]
    assert list(points["finalists, test"].text) == ["trial 4, test"]
    assert points["all on validation"].visible == "legendonly"


def test_the_figure_of_the_front_opens_with_the_choice(structure: ModelStructure) -> None:
    figure = figures_of(measured(structure))["front_by_epoch"]
    conclusion = "chosen: trial 7, 1.46x as fast (measured), accuracy 0.800 on test (dense 0.880)"
    assert figure.layout.title.text.split("<br>")[1] == f"<sub>{conclusion}"
    before = figures_of(two_epochs(structure))["front_by_epoch"].layout.title.text
    assert "chosen" not in before


def test_accuracy_on_test_is_drawn_against_the_proxy(structure: ModelStructure) -> None:
    points = legend_of(figures_of(measured(structure))["proxy_and_test"])
    finalists, diagonal = points["finalists"], points["test = proxy"]
    assert (list(finalists.x), list(finalists.y)) == ([0.7], [0.6])
    assert list(finalists.error_x.arrayminus) == [0.1]
    assert diagonal.x == diagonal.y


def test_the_axes_name_the_rule_of_the_metric(structure: ModelStructure) -> None:
    rules = {"search": "likeliest option", "report": "token F1"}
    figures = figures_of(replace(measured(structure), metric=rules, accuracy="hard"))
    layout = figures["proxy_and_test"].layout
    assert layout.yaxis.title.text == "accuracy on test (token F1)"
    assert "(token F1)" in layout.xaxis.title.text
    front = figures["front_by_epoch"].layout.title.text
    assert "proxy, likeliest option; predicted" in front
    assert "diamonds: test, token F1, with" in front
