"""The heat map of sensitivity curves: its cells, their order and their colours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from effllava_optuna.policy import Component, ComponentId, Kind, ModelStructure
from effllava_optuna.report.figures.sensitivity_figure import full_height, sensitivity_heat_map
from tests.report.study_samples import facts, figures_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import plotly.graph_objects as go

MAX_CHARACTERS = 60_000  # of a figure's JSON
ATTN, MLP = ComponentId("language.00.attn"), ComponentId("language.00.mlp")
WIDE = {
    ATTN: {1: 1.0, 2: 0.1, 4: 0.0},
    MLP: {8: 0.01, 16: 0.001, 32: 0.0},
    ComponentId("language.01.attn"): {1: 2.0, 2: 0.2, 4: 0.0},
}


def cells(figure: go.Figure) -> dict[str, list[tuple[float, float, int, float]]]:
    """Return start, end, width and loss of each cell by component, in the order of the axis."""
    drawn: dict[str, list[tuple[float, float, int, float]]] = {}
    for trace in figure.data:
        for name, colours, labels in zip(trace.y, trace.z, trace.customdata, strict=True):
            for index, (colour, label) in enumerate(zip(colours, labels, strict=True)):
                assert (colour is None) == (label is None)
                if label is not None:
                    cell = (trace.x[index], trace.x[index + 1], *label)
                    drawn.setdefault(name, []).append(cell)
    return {name: drawn[name] for name in figure.layout.yaxis.categoryarray if name in drawn}


def colours_of(figure: go.Figure, component: str) -> list[float]:
    """Return the values that the colours of one row stand for, in decades."""
    rows = [
        list(colours)
        for trace in figure.data
        for name, colours in zip(trace.y, trace.z, strict=True)
        if name == component and None not in colours
    ]
    assert len(rows) == 1
    return rows[0]


def test_rows_are_in_the_order_of_a_forward_pass_from_the_top(structure: ModelStructure) -> None:
    backwards = dict(reversed(WIDE.items()))
    figure = sensitivity_heat_map(backwards, structure)
    assert list(figure.layout.yaxis.categoryarray) == list(WIDE)
    assert figure.layout.yaxis.autorange == "reversed"
    assert list(cells(figure)) == list(WIDE)


def test_a_cell_reaches_halfway_to_the_next_widths(structure: ModelStructure) -> None:
    drawn = cells(sensitivity_heat_map(WIDE, structure))
    assert drawn[ATTN] == [
        (0.125, 0.375, 1, 1.0), (0.375, 0.75, 2, 0.1), (0.75, 1.0, 4, 0.0),
    ]  # fmt: skip
    assert [cell[2:] for cell in drawn[MLP]] == [(8, 0.01), (16, 0.001), (32, 0.0)]


def test_widths_without_a_value_are_not_drawn(structure: ModelStructure) -> None:
    drawn = cells(sensitivity_heat_map({ATTN: {2: 0.1}, MLP: {}}, structure))
    assert drawn == {ATTN: [(0.25, 0.75, 2, 0.1)]}


def test_colours_are_decades_and_losses_below_the_lowest_share_its_colour(
    structure: ModelStructure,
) -> None:
    curve = {1: 10.0, 8: 0.1, 16: 1e-7, 24: -0.2, 32: 0.0}
    figure = sensitivity_heat_map({MLP: curve}, structure)
    axis = figure.layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-3, 1)
    assert colours_of(figure, MLP) == [1.0, -1.0, -3, -3, -3]
    assert [cell[3] for cell in cells(figure)[MLP]] == [10.0, 0.1, 1e-7, -0.2, 0.0]
    assert list(axis.colorbar.ticktext) == ["0.001", "0.01", "0.1", "1", "10"]


@pytest.mark.parametrize(
    ("source", "unit"), [("measured", "nats"), ("residual", "squared logits")]
)
def test_the_unit_is_that_of_the_source(structure: ModelStructure, source: str, unit: str) -> None:
    figure = sensitivity_heat_map(WIDE, structure, source)
    assert unit in figure.layout.title.text
    assert unit in figure.layout.coloraxis.colorbar.title.text
    assert all(unit in trace.hovertemplate for trace in figure.data)


@pytest.mark.parametrize("losses", [{}, {2: 0.0, 4: 0.0}, {2: -0.1}])
def test_curves_without_a_loss_are_drawn(
    structure: ModelStructure, losses: Mapping[int, float]
) -> None:
    figure = sensitivity_heat_map({ATTN: losses}, structure)
    assert math.isfinite(figure.layout.coloraxis.cmin)
    assert len(cells(figure).get(ATTN, [])) == len(losses)


def test_a_removed_block_is_a_cell_from_zero() -> None:
    block = Component("language", 0, Kind.BLOCK, 1, 10, floor=0)
    figure = sensitivity_heat_map({block.id: {0: 0.5}}, ModelStructure((block,)))
    assert cells(figure)[block.id] == [(0.0, 0.5, 0, 0.5)]


@pytest.mark.parametrize("layers", [4, 32, 80])
def test_a_figure_of_many_components_stays_small(layers: int) -> None:
    large = ModelStructure(
        tuple(
            Component("language", layer, kind, width, 100)
            for layer in range(layers)
            for kind, width in ((Kind.ATTN, 8), (Kind.MLP, 11008))
        )
    )
    curves: dict[Any, dict[int, float]] = {
        component.id: {
            max(1, component.width * tenth // 10): 0.0123456 / tenth for tenth in range(1, 11)
        }
        for component in large.components
    }
    figure = sensitivity_heat_map(curves, large)
    assert len(figure.to_json()) < MAX_CHARACTERS
    assert figure.layout.height is None  # that of its frame
    assert 8 * layers < full_height(figure) < 1300


def test_the_figure_is_there_if_the_study_has_curves(structure: ModelStructure) -> None:
    sensitivity = {"curves": WIDE, "source": "measured"}
    figures = figures_of(facts(structure, sensitivity=sensitivity))
    assert list(figures) == ["sensitivity"]
    assert "sensitivity" not in figures_of(facts(structure))
