"""The figure of sensitivity curves: what narrowing one component alone costs, by width."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import plotly.graph_objects as go

from effllava_optuna.report.figures.figure_style import apply_layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import ComponentId, ModelStructure

_ROW_HEIGHTS, _MOST_HEIGHT = (7, 26), 900  # pixels: of a row, and of all rows together
_MOST_GAPS = 40  # rows with a gap between them; more would be thinner than their gaps
_LEAST_HEIGHT = 300  # pixels
_TOP, _BOTTOM = 80, 62  # margins, pixels
_DECADES = 4  # of the colours; measured losses span more, most of it below the noise
_UNITS = {"measured": "nats", "residual": "squared logits"}
_SUBTITLES = {
    "measured": "loss added on the proxy if one component is narrowed (nats)",
    "residual": "estimated change of the margin if one component is narrowed (squared logits)",
}


class _Row(NamedTuple):
    """The cells of one component: their boundaries, widths and losses, the narrowest first."""

    edges: tuple[float, ...]
    widths: list[int]
    losses: list[float]


def sensitivity_heat_map(
    curves: Mapping[ComponentId, Mapping[int, float]],
    structure: ModelStructure,
    source: str = "measured",
) -> go.Figure:
    """Draw the loss that each component adds when it alone is narrowed, by width ratio.

    Rows are components in the order of a forward pass. A row has one cell for each width in its
    curve; nothing is interpolated: a cell reaches halfway to the next widths, the dense one
    included. Colours are logarithmic, because losses span several decades; losses below the
    lowest decade, negative ones included, have the lowest colour.

    Args:
        curves: The loss by component and width. Components without a curve have no row.
        structure: The structure of the model.
        source: Where the curves come from: ``measured``, in nats, or ``residual``, the mean
            squared change of the answer margin that calibration estimates, in squared logits.
    """
    rows = {
        component.id: _row(curves[component.id], component.width)
        for component in structure.components
        if curves.get(component.id)
    }
    largest = max((loss for row in rows.values() for loss in row.losses), default=0.0)
    lowest, highest = _colour_range(largest)
    figure = go.Figure()
    for edges in dict.fromkeys(row.edges for row in rows.values()):
        figure.add_trace(_cells(rows, edges, lowest, _UNITS[source]))
    title = "Sensitivity of each component"
    apply_layout(figure, title, _SUBTITLES[source], "width ratio (share of the units kept)", None)
    _arrange_axes(figure, list(rows))
    figure.update_layout(coloraxis=_colour_axis(lowest, highest, _UNITS[source]))
    return figure


def _row(curve: Mapping[int, float], dense: int) -> _Row:
    widths = sorted(curve)
    ratios = [width / dense for width in widths]
    middles = [(low + high) / 2 for low, high in zip(ratios, [*ratios[1:], 1.0], strict=True)]
    first = max(0.0, 2 * ratios[0] - middles[0])
    return _Row(
        tuple(round(edge, 4) for edge in (first, *middles)),
        widths,
        [float(f"{curve[width]:.3g}") for width in widths],
    )


def _cells(
    rows: Mapping[ComponentId, _Row], edges: tuple[float, ...], lowest: float, unit: str
) -> go.Heatmap:
    """Return the cells of all rows with these boundaries; the other rows are left empty."""
    colours: list[Sequence[Any]] = []
    labels: list[Sequence[Any]] = []
    for row in rows.values():
        if row.edges == edges:
            colours.append([_logarithm(loss, lowest) for loss in row.losses])
            labels.append(list(zip(row.widths, row.losses, strict=True)))
        else:
            colours.append([None] * (len(edges) - 1))
            labels.append([None] * (len(edges) - 1))
    return go.Heatmap(
        x=edges,
        y=list(rows),
        z=colours,
        customdata=labels,
        coloraxis="coloraxis",
        xgap=1,
        ygap=1 if len(rows) <= _MOST_GAPS else 0,
        hoverongaps=False,
        hovertemplate=(
            "%{y}, %{customdata[0]} units: %{customdata[1]} " + unit + "<extra></extra>"
        ),
    )


def _logarithm(loss: float, lowest: float) -> float:
    """Return the decade of a loss, but at least ``lowest``."""
    return max(lowest, round(math.log10(loss), 2)) if loss > 0 else lowest


def full_height(figure: go.Figure) -> int:
    """Return the height in pixels at which the rows of a heat map are legible.

    Without a height, a figure fills its frame, which is 450 pixels high in optuna-dashboard; then
    only as many rows are labelled as there is room for.
    """
    rows = len(figure.layout.yaxis.categoryarray)
    least, most = _ROW_HEIGHTS
    height = min(most, max(least, _MOST_HEIGHT // max(1, rows)))
    return max(_LEAST_HEIGHT, rows * height + _TOP + _BOTTOM)


def _arrange_axes(figure: go.Figure, names: Sequence[str]) -> None:
    """Order the rows from top to bottom, and set margins that do not depend on the height."""
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=list(names),
        autorange="reversed",
        showgrid=False,
    )
    figure.update_xaxes(range=[0, 1], dtick=0.1, tickformat=".1f", showgrid=False)
    title = {"y": 1, "pad": {"t": 22}}
    figure.update_layout(margin={"t": _TOP, "b": _BOTTOM}, title=title)


def _colour_range(largest: float) -> tuple[float, float]:
    """Return the ends of the colours, in decades, for losses up to ``largest``."""
    highest = math.log10(largest) if largest > 0 else 0.0
    return round(highest - _DECADES, 2), round(highest, 2)


def _colour_axis(lowest: float, highest: float, unit: str) -> dict[str, Any]:
    decades = range(math.ceil(lowest), math.floor(highest) + 1)
    return {
        "colorscale": "Cividis",
        "reversescale": True,
        "cmin": lowest,
        "cmax": highest,
        "colorbar": {
            "title": {"text": unit, "side": "right"},
            "tickvals": list(decades),
            "ticktext": [f"{10.0**decade:g}" for decade in decades],
        },
    }
