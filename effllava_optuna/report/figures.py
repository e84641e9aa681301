"""Figures of a study, for the dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from effllava_optuna.policy import front_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import TrialRecord

# Okabe and Ito (2008): told apart by colour-blind readers, too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_MOST = 200  # points of an epoch that are drawn: the dashboard stores figures in small pieces


def front_by_epoch(
    trials: Sequence[TrialRecord], epochs: int, dense: Mapping[str, Any], chosen: int | None
) -> go.Figure:
    """Draw accuracy against latency: each epoch's trials, its front as a line, and the choice."""
    figure = go.Figure()
    for epoch in range(epochs):
        colour = COLOURS[epoch % len(COLOURS)]
        mine = [trial for trial in trials if trial.epoch == epoch and trial.measured]
        front = sorted(front_of(mine), key=lambda trial: trial.latency_ms)
        shown = mine[-_MOST:]
        figure.add_scatter(
            x=[round(trial.latency_ms, 2) for trial in shown],
            y=[round(trial.expected, 4) for trial in shown],
            mode="markers",
            name=f"epoch {epoch}",
            legendgroup=str(epoch),
            marker={"color": colour, "size": 5, "opacity": 0.45},
            text=[f"trial {trial.number}, kept {trial.kept_share:.3f}" for trial in shown],
        )
        figure.add_scatter(
            x=[round(trial.latency_ms, 2) for trial in front],
            y=[round(trial.expected, 4) for trial in front],
            mode="lines",
            line={"color": colour, "shape": "hv"},
            name=f"front of epoch {epoch}",
            legendgroup=str(epoch),
        )
    figure.add_scatter(
        x=[round(dense["latency_ms"], 2)],
        y=[round(dense["expected"], 4)],
        mode="markers",
        name="dense",
        marker={"color": "black", "symbol": "star", "size": 12},
    )
    for trial in trials:
        if trial.number == chosen:
            figure.add_scatter(
                x=[round(trial.latency_ms, 2)],
                y=[round(trial.expected, 4)],
                mode="markers",
                name="chosen",
                marker={"color": "black", "symbol": "circle-open", "size": 14},
            )
    figure.update_layout(
        title="Policies by epoch",
        xaxis_title="latency (ms, by the table)",
        yaxis_title="expected accuracy on the proxy, cross-fitted",
        template="plotly_white",
    )
    return figure
