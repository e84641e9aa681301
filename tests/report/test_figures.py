from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from effllava_optuna.policy import Anatomy as MadeAnatomy
from effllava_optuna.policy import Kind, Policy, Site, hypervolume
from effllava_optuna.report import StudyFacts, document, entry
from effllava_optuna.report.bars import bars
from effllava_optuna.report.figures import figures
from tests.report.made import BUNDLE, facts, record

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from effllava_optuna.policy import Anatomy

MOST = 60_000  # characters of a figure's JSON
UPDATE = {
    "steps": 4, "seconds": 1.0, "proxy_loss_before": 0.9, "proxy_loss_after": 0.4,
    "crossfit_curve": [
        {"steps": 0, "loss": 0.8, "accuracy": 0.5}, {"steps": 4, "loss": 0.6, "accuracy": 0.6},
    ],
}  # fmt: skip


def searched(anatomy: Anatomy, count: int = 8, **other: Any) -> StudyFacts:
    """Two epochs whose trials get better."""
    trials = [
        record(
            anatomy, n, 0.5 + 0.4 * n / count, 20.0 + n * 25 / count, epoch=2 * n // count,
            expected=0.45 + 0.4 * n / count,
        )
        for n in range(count)
    ]  # fmt: skip
    made = facts(anatomy, *trials, bundle=BUNDLE, updates=[UPDATE])
    return dataclasses.replace(made, opened=2, **other)


def finished(anatomy: Anatomy) -> StudyFacts:
    def row(trial: int | None, proxy: float, test: float, ms: float) -> dict[str, Any]:
        return entry(
            policy=Policy.dense(anatomy), anatomy=anatomy, trial=trial, epoch=1, latency_ms=ms,
            accuracy_proxy=proxy, accuracy_proxy_interval=(proxy - 0.1, proxy + 0.05),
            accuracy_test=test, accuracy_test_interval=(test - 0.02, test + 0.03),
            accuracy_validation=test, accuracy_validation_interval=(test - 0.1, test + 0.1),
        )  # fmt: skip

    front = [row(7, 0.85, 0.8, 41.0), row(4, 0.7, 0.6, 32.0)]
    results = {
        "dense": row(None, 0.9, 0.88, 50.0), "uniform": row(None, 0.5, 0.4, 30.0),
        "uniform2": row(None, 0.6, 0.5, 35.0), "front": front, "chosen": front[0],
    }  # fmt: skip
    return searched(anatomy, results=results)


def drawn(study: StudyFacts) -> dict[str, go.Figure]:
    return figures(study, document(study))


def named(figure: go.Figure) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data if trace.showlegend is not False}


def test_a_study_that_has_measured_nothing_has_no_figures(anatomy: Anatomy) -> None:
    assert drawn(facts(None)) == {}
    assert drawn(facts(anatomy, bundle=BUNDLE)) == {}


def test_a_study_under_way_has_what_is_known(anatomy: Anatomy) -> None:
    found = drawn(searched(anatomy))
    assert set(found) == {"front_by_epoch", "hypervolume", "kept_widths", "projector"}
    assert set(named(found["front_by_epoch"])) == {"epoch 0", "epoch 1", "dense: 50.0 ms, proxy"}


def test_the_front_of_each_epoch_has_a_colour_and_is_of_what_the_quality_is_made_of(
    anatomy: Anatomy,
) -> None:
    lines = named(drawn(searched(anatomy))["front_by_epoch"])
    assert lines["epoch 0"].line.color != lines["epoch 1"].line.color
    assert list(lines["epoch 0"].y) == pytest.approx([0.45, 0.5, 0.55, 0.6])
    hard = named(drawn(searched(anatomy, accuracy="hard"))["front_by_epoch"])
    assert list(hard["epoch 0"].y) == pytest.approx([0.5, 0.55, 0.6, 0.65])


def test_what_was_measured_at_the_end_has_intervals(anatomy: Anatomy) -> None:
    found = drawn(finished(anatomy))
    marks = named(found["front_by_epoch"])
    assert {
        "dense: 50.0 ms, test", "uniform, 1 number, test", "uniform, 2 numbers, test",
        "finalists, test", "chosen, test", "all on validation",
    } < set(marks)  # fmt: skip
    chosen = marks["chosen, test"]
    assert (list(chosen.x), list(chosen.y)) == ([41.0], [0.8])
    assert list(chosen.error_y.array) == [0.03]
    assert list(chosen.error_y.arrayminus) == [0.02]
    assert list(marks["finalists, test"].text) == ["trial 4, test"]
    assert marks["all on validation"].visible == "legendonly"
    pairs = named(found["proxy_and_test"])
    assert (list(pairs["finalists"].x), list(pairs["finalists"].y)) == ([0.7], [0.6])
    assert list(pairs["finalists"].error_x.arrayminus) == [0.1]
    assert pairs["test = proxy"].x == pairs["test = proxy"].y


def test_the_hypervolume_of_an_epoch_ends_at_that_of_its_front(anatomy: Anatomy) -> None:
    study = searched(anatomy)
    lines = named(drawn(study)["hypervolume"])
    points = [(trial.expected, trial.latency_ms) for trial in study.trials[:4]]
    assert list(lines["epoch 0"].x) == [1, 2, 3, 4]
    for trial, volume in enumerate(lines["epoch 0"].y, start=1):
        assert volume == pytest.approx(hypervolume(points[:trial], (0.1, 52.5)), abs=1e-4)


def test_the_hypervolume_leaves_out_what_is_infeasible(anatomy: Anatomy) -> None:
    study = searched(anatomy)
    outside = record(anatomy, 9, 1.0, 1.0, epoch=1, feasible=False)
    more = dataclasses.replace(study, trials=[*study.trials, outside])
    before, after = (named(drawn(s)["hypervolume"])["epoch 1"].y for s in (study, more))
    assert after[-1] == before[-1]


def test_the_heat_map_shows_the_share_of_each_layer(anatomy: Anatomy) -> None:
    study = searched(anatomy)
    heat = drawn(study)["kept_widths"]
    attention, mlp = heat.data
    assert list(attention.x) == [0, 1, 2]
    assert list(attention.z[0]) == [0.25, 0.25, 0.25]
    assert mlp.z[0] == pytest.approx((0.031, 0.25, 0.031))  # 1, 8 and 1 of 32
    fastest = document(study)["front"][-1]
    assert attention.y[0] == f"trial {fastest['trial']}"


def test_the_loss_of_an_update_is_drawn_held_out_and_trained_on(anatomy: Anatomy) -> None:
    lines = named(drawn(searched(anatomy))["projector"])
    assert list(lines["epoch 1, held out"].y) == [0.8, 0.6]
    trained = lines["epoch 1, trained on (4 steps taken)"]
    assert (list(trained.x), list(trained.y)) == ([0, 4], [0.9, 0.4])


def test_figures_of_a_large_study_stay_small() -> None:
    large = MadeAnatomy(
        tuple(
            Site("language", layer, kind, 32, 100)
            for layer in range(32)
            for kind in (Kind.ATTN, Kind.MLP)
        )
    )
    sizes = {name: len(figure.to_json()) for name, figure in drawn(searched(large, 3000)).items()}
    assert max(sizes.values()) < MOST, sizes


def test_a_policy_is_a_picture_with_a_bar_a_site(anatomy: Anatomy) -> None:
    def blue(keep: int) -> int:
        policy = {site.id: keep if site.kind is Kind.ATTN else 1 for site in anatomy.sites}
        picture = Image.open(io.BytesIO(bars(anatomy, policy, "a policy")))
        assert picture.format == "PNG"
        counts = picture.convert("RGB").getcolors(1 << 20)
        assert counts is not None
        return {colour: count for count, colour in counts}[0, 0x72, 0xB2]

    assert blue(4) == pytest.approx(2 * blue(2), rel=0.02)
