"""The figures of a study: which there are, and what they draw."""

from __future__ import annotations

import dataclasses

import pytest

from effllava_optuna.policy import IMAGE_TOKENS, Component, Kind, ModelStructure, hypervolume
from effllava_optuna.report import study_document
from tests.report.study_samples import (
    CALIBRATION,
    facts,
    figures_of,
    legend_of,
    record,
    two_epochs,
)

MAX_CHARACTERS = 60_000  # of a figure's JSON


def test_a_study_that_has_measured_nothing_has_no_figures(structure: ModelStructure) -> None:
    assert figures_of(facts(None)) == {}
    assert figures_of(facts(structure, calibration=CALIBRATION)) == {}


def test_a_study_under_way_has_no_figure_of_test(structure: ModelStructure) -> None:
    figures = figures_of(two_epochs(structure))
    assert set(figures) == {"front_by_epoch", "hypervolume", "width_ratios", "projector"}
    assert set(legend_of(figures["front_by_epoch"])) == {
        "epoch 1",
        "epoch 2",
        "dense, proxy",
    }


def test_the_hypervolume_of_an_epoch_ends_at_that_of_its_front(structure: ModelStructure) -> None:
    study = two_epochs(structure)
    lines = legend_of(figures_of(study)["hypervolume"])
    points = [(trial.expected, trial.latency_ms) for trial in study.trials[:4]]
    assert list(lines["epoch 1"].x) == [1, 2, 3, 4]
    for trial, volume in enumerate(lines["epoch 1"].y, start=1):
        assert volume == pytest.approx(hypervolume(points[:trial], (0.1, 52.5)), abs=1e-4)


def test_the_hypervolume_excludes_infeasible_trials(structure: ModelStructure) -> None:
    study = two_epochs(structure)
    outside = record(structure, 9, 1.0, 1.0, epoch=1, feasible=False)
    more = dataclasses.replace(study, trials=[*study.trials, outside])
    before, after = (legend_of(figures_of(s)["hypervolume"])["epoch 2"].y for s in (study, more))
    assert after[-1] == before[-1]


def test_the_heat_map_shows_the_width_ratio_of_each_layer(structure: ModelStructure) -> None:
    study = two_epochs(structure)
    heat = figures_of(study)["width_ratios"]
    attention, mlp = heat.data
    assert list(attention.x) == [0, 1, 2]
    assert list(attention.z[0]) == [0.25, 0.25, 0.25]
    assert mlp.z[0] == pytest.approx((0.031, 0.25, 0.031))  # 1, 8 and 1 of 32
    fastest = study_document(study)["front"][-1]
    assert attention.y[0] == f"trial {fastest['trial']}"


def test_layers_are_named_and_image_tokens_are_no_layer(structure: ModelStructure) -> None:
    with_tokens = ModelStructure((IMAGE_TOKENS, *structure.components))
    heat = figures_of(two_epochs(with_tokens))["width_ratios"]
    assert [text.text for text in heat.layout.annotations] == [
        "language: attention (key/value groups)", "language: MLP channels",
    ]  # fmt: skip
    assert (heat.layout.xaxis.title.text, heat.layout.xaxis2.title.text) == (None, "layer")
    assert all(label.endswith(", 1 % tokens") for label in heat.data[0].y)


def test_the_loss_of_an_update_is_drawn_on_held_out_and_training_samples(
    structure: ModelStructure,
) -> None:
    lines = legend_of(figures_of(two_epochs(structure))["projector"])
    assert list(lines["epoch 2, held out"].y) == [0.8, 0.6]
    trained = lines["epoch 2, training samples (4 steps)"]
    assert (list(trained.x), list(trained.y)) == ([0, 4], [0.9, 0.4])


def test_figures_of_a_large_study_stay_small() -> None:
    large = ModelStructure(
        tuple(
            Component("language", layer, kind, 32, 100)
            for layer in range(32)
            for kind in (Kind.ATTN, Kind.MLP)
        )
    )
    sizes = {
        name: len(figure.to_json()) for name, figure in figures_of(two_epochs(large, 3000)).items()
    }
    assert max(sizes.values()) < MAX_CHARACTERS, sizes
