"""The figures of a study, for the dashboard and the HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from effllava_optuna.policy import IMAGE_TOKENS, Kind, hypervolume, pareto
from effllava_optuna.report.figures.accuracy_figures import front_by_epoch, proxy_and_test
from effllava_optuna.report.figures.figure_style import (
    COLOURS,
    KINDS,
    MAX_LINE_POINTS,
    apply_layout,
    panels_of,
    quality_accuracy,
    thin,
)
from effllava_optuna.report.figures.sensitivity_figure import sensitivity_heat_map
from effllava_optuna.report.policy_table import is_chosen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from effllava_optuna.report.document import StudyFacts


def study_figures(facts: StudyFacts, document: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Draw the figures for which there are values, by id.

    Args:
        facts: The stored facts of the study.
        document: Its document, see `effllava_optuna.report.study_document`.
    """
    figures = {
        "sensitivity": _sensitivity(facts, document),
        "front_by_epoch": front_by_epoch(facts, document),
        "hypervolume": hypervolume_by_trial(facts),
        "width_ratios": width_ratios(facts, document),
        "proxy_and_test": proxy_and_test(document),
        "projector": projector_loss(facts),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _sensitivity(facts: StudyFacts, document: Mapping[str, Any]) -> go.Figure | None:
    sensitivity = document["sensitivity"]
    if facts.structure is None or sensitivity is None:
        return None
    return sensitivity_heat_map(sensitivity["curves"], facts.structure, sensitivity["source"])


def hypervolume_by_trial(facts: StudyFacts) -> go.Figure | None:
    """Draw the hypervolume of each epoch against the number of its trials.

    The hypervolume is the area (accuracy x ms) between the front so far and the reference point.
    Values of different epochs belong to different projectors, so each line starts at zero trials.
    """
    if facts.calibration is None:
        return None
    field, (accuracy, latency_ms) = quality_accuracy(facts), facts.calibration["reference"]
    measure = facts.measures.get("proxy", "accuracy")
    figure = go.Figure()
    for epoch in range(facts.opened):
        trials = [trial for trial in facts.trials if trial.epoch == epoch and trial.measured]
        if not trials:
            continue
        counts = thin(range(1, len(trials) + 1), MAX_LINE_POINTS)
        front: list[tuple[float, float]] = []
        volumes, start = [], 0
        for count in counts:
            added = trials[start:count]
            points = front + [(getattr(t, field), t.latency_ms) for t in added if t.eligible]
            front, start = [points[index] for index in pareto(points)], count
            volumes.append(round(hypervolume(front, (accuracy, latency_ms)), 4))
        figure.add_scatter(
            x=counts,
            y=volumes,
            mode="lines",
            line={"color": COLOURS[epoch % len(COLOURS)], "width": 2, "shape": "hv"},
            name=f"epoch {epoch + 1}",
        )
    if not figure.data:
        return None
    apply_layout(
        figure,
        "Hypervolume within each epoch",
        "area dominated by the front so far; each epoch has its own projector",
        "trials measured in the epoch",
        f"hypervolume ({measure} x ms)",
    )
    return figure


def width_ratios(facts: StudyFacts, document: Mapping[str, Any]) -> go.Figure | None:
    """Draw the width ratio of each layer for the policies of the front, a panel per kind."""
    rows = sorted(document["front"], key=lambda row: row["latency_ms"])
    if facts.structure is None or not rows:
        return None
    panels = {
        (tower, kind): components
        for (tower, kind), components in panels_of(facts.structure).items()
        if kind != Kind.TOKENS
    }
    labels = [_label(document, row) for row in rows]
    columns = 1 if len(panels) <= 2 else 2
    n_rows = -(-len(panels) // columns)
    figure = make_subplots(
        rows=n_rows,
        cols=columns,
        subplot_titles=[
            f"{tower}: {KINDS[kind] if columns == 1 else kind}" for tower, kind in panels
        ],
        vertical_spacing=0.36 / n_rows,
        horizontal_spacing=0.06,
        shared_yaxes=True,
    )
    apply_layout(
        figure,
        "Width ratio of each layer",
        "policies of the front, the fastest at the bottom; 1.00: all units of the layer are kept",
        None,
        None,
    )
    for index, components in enumerate(panels.values()):
        ratios = [
            [round(row["policy"][component.id] / component.width, 3) for component in components]
            for row in rows
        ]
        few_layers = len(components) <= 16
        cell = {"row": index // columns + 1, "col": index % columns + 1}
        figure.add_trace(
            go.Heatmap(
                x=[component.layer for component in components],
                y=labels,
                z=ratios,
                coloraxis="coloraxis",
                xgap=1,
                ygap=1,
                texttemplate="%{z:.2f}" if few_layers and columns == 1 else None,
                hovertemplate="layer %{x}, %{y}: %{z:.3f} kept<extra></extra>",
            ),
            **cell,
        )
        lowest = index + columns >= len(panels)
        title = "layer" if lowest else None
        figure.update_xaxes(dtick=1 if few_layers else None, title_text=title, **cell)
    figure.update_annotations(font={"size": 13})
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    figure.update_layout(
        margin={"b": 56, "t": 90},
        coloraxis={
            "colorscale": "Cividis",
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": {"text": "ratio"}, "tickformat": ".1f"},
        },
    )
    return figure


def _label(document: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Return the number of a trial, whether it is chosen, and its image tokens."""
    label = f"trial {row['trial']}{' (chosen)' if is_chosen(document, row) else ''}"
    percent = row["policy"].get(IMAGE_TOKENS.id)
    return label if percent is None else f"{label}, {percent} % tokens"


def projector_loss(facts: StudyFacts) -> go.Figure | None:
    """Draw the loss of each projector update by its steps, on held-out and on training samples."""
    updates = [update for update in facts.updates if update.get("crossfit_curve")]
    if not updates:
        return None
    figure = go.Figure()
    for epoch, update in enumerate(updates, start=2):
        colour = COLOURS[(epoch - 1) % len(COLOURS)]  # that of the epoch which the update opens
        curve = thin(update["crossfit_curve"], MAX_LINE_POINTS)
        figure.add_scatter(
            x=[point["steps"] for point in curve],
            y=[round(point["loss"], 4) for point in curve],
            mode="lines+markers",
            line={"color": colour, "width": 2},
            name=f"epoch {epoch}, held out",
        )
        figure.add_scatter(
            x=[0, update["steps"]],
            y=[round(update[f"proxy_loss_{when}"], 4) for when in ("before", "after")],
            mode="lines+markers",
            line={"color": colour, "width": 1.5, "dash": "dot"},
            marker={"symbol": "circle-open", "size": 9},
            name=f"epoch {epoch}, training samples ({update['steps']} steps)",
        )
    apply_layout(
        figure,
        "Loss of the projector, by update",
        "mean over the elites; held-out samples choose the number of steps, zero included",
        "training steps",
        "answer loss (nats)",
    )
    figure.update_yaxes(rangemode="tozero")
    return figure
