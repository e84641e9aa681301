"""Figures of a study, for the dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from effllava_optuna.policy import front_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.report.document import StudyFacts

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


def tests_beside(documents: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw the finalists of several studies: accuracy on test against measured latency."""
    figure = go.Figure()
    for place, document in enumerate(documents):
        rows = [row for row in document["front"] if row["accuracy_test"] is not None]
        rows.sort(key=lambda row: row["latency_ms_measured"])
        chosen = None if document["chosen"] is None else document["chosen"]["trial"]
        ends = [row["accuracy_test_interval"] for row in rows]
        tests = [row["accuracy_test"] for row in rows]
        figure.add_scatter(
            x=[row["latency_ms_measured"] for row in rows],
            y=tests,
            error_y={
                "array": [high - test for (_, high), test in zip(ends, tests, strict=True)],
                "arrayminus": [test - low for (low, _), test in zip(ends, tests, strict=True)],
                "thickness": 1,
            },
            mode="markers",
            name=document["study"],
            marker={
                "color": COLOURS[place % len(COLOURS)],
                "size": [13 if row["trial"] == chosen else 7 for row in rows],
            },
            text=[f"trial {row['trial']}" for row in rows],
        )
    figure.update_layout(
        title="Finalists on test (large: chosen)",
        xaxis_title="latency (ms, measured)",
        yaxis_title="accuracy on test",
        template="plotly_white",
    )
    return figure


def figures(facts: StudyFacts, document: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Give all figures of a study for which there is something to draw, by name."""
    if facts.bundle is None:
        return {}
    dense = facts.bundle["dense"]
    chosen = document["chosen"] and document["chosen"]["trial"]
    return {"front_by_epoch": front_by_epoch(facts.trials, facts.opened, dense, chosen)}
