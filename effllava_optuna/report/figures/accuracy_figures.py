"""Figures of accuracy: against speed-up, and on the proxy against test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import plotly.graph_objects as go

from effllava_optuna.policy import front_of
from effllava_optuna.report.figures.figure_style import (
    COLOURS,
    GREY,
    INK,
    PURPLE,
    VERMILION,
    apply_layout,
    error_bars,
    marker,
    quality_accuracy,
    thin,
)
from effllava_optuna.report.text_table import measure_of_split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.report.document import StudyFacts

_EXPECTED = {
    "accuracy": "mean probability of the right answer",
    "agreement": "mean of exp(-divergence from the dense model)",
}
_AGREEMENT = "share answered as by the dense model"
_MAX_TRIALS, _MAX_FRONT_POINTS = 500, 250  # per figure, all epochs together


class _MeasuredPolicies(NamedTuple):
    """The result rows of one entry of the legend."""

    name: str
    colour: str
    rows: Sequence[Mapping[str, Any]]


def front_by_epoch(facts: StudyFacts, document: Mapping[str, Any]) -> go.Figure | None:
    """Draw accuracy against speed-up: trials and front of each epoch, and the finalists.

    Trials are drawn at their accuracy on the proxy, which the search maximized, and at their
    predicted speed-up. Policies that were measured at the end of the study are drawn at their
    accuracy on test, with 95 % intervals, and at their measured speed-up, as in the table of
    policies; a click in the legend adds validation. Times in ms of a trial and of a finalist are
    not comparable: the machine may have been busier when the latency table was measured. The
    dense model is a line: its point, far to the left, would squeeze all others.
    """
    if facts.calibration is None or not any(trial.measured for trial in facts.trials):
        return None
    figure = go.Figure()
    for epoch in range(facts.opened):
        _add_epoch(figure, facts, epoch, document["dense"]["latency_ms"])
    dense = document["dense"]
    split = "proxy" if dense["accuracy_test"] is None else "test"
    _add_measured(figure, document, "test", "diamond")
    _add_measured(figure, document, "validation", "cross")
    speedups = [speedup for trace in figure.data for speedup in trace.x]
    figure.add_scatter(
        x=[min(speedups), max(speedups)],
        y=2 * [round(dense[f"accuracy_{split}"], 4)],
        mode="lines",
        line={"color": INK, "dash": "dash", "width": 1.5},
        name=f"dense, {split}",
    )
    expected = quality_accuracy(facts) == "expected"
    measures = {s: measure_of_split(document, s) for s in ("proxy", split)}
    metric = _EXPECTED[measures["proxy"]] if expected else _metric(document, "proxy", use="search")
    name = " and ".join(dict.fromkeys(measures.values()))
    apply_layout(
        figure,
        f"{name.capitalize()} against speed-up, by epoch",
        _conclusion(document)
        + f"dots and lines: proxy, {metric}; predicted speed-up"
        + (
            ""
            if split == "proxy"
            else f"<br>diamonds: test, {_metric(document, 'test')}, with "
            "95 % bars; measured speed-up"
        ),
        f"times as fast as the dense model ({_dense_latency(dense)})",
        f"{name} (0 to 1)",
    )
    figure.update_layout(legend_y=-0.3)  # below the title of the axis, for up to three rows
    return figure


def _metric(document: Mapping[str, Any], split: str, *, use: str = "report") -> str:
    """Return the rule that scores a split, in the report or in the search, if it is known."""
    if measure_of_split(document, split) == "agreement":
        return _AGREEMENT
    metric = document["metric"]
    return "share right" if metric is None else str(metric[use])


def _dense_latency(dense: Mapping[str, Any]) -> str:
    """Return the latency of the dense model, measured at the end of the study or predicted."""
    if dense["latency_ms_measured"] is None:
        return f"{dense['latency_ms']:.1f} ms, predicted"
    return f"{dense['latency_ms_measured']:.1f} ms, measured"


def _conclusion(document: Mapping[str, Any]) -> str:
    """Return what was chosen as a line of the subtitle; nothing before the end of the study."""
    chosen = document["chosen"]
    if chosen is None:
        return ""
    return (
        f"chosen: trial {chosen['trial']}, {chosen['speedup_measured']:.2f}x as fast (measured), "
        f"{measure_of_split(document, 'test')} {chosen['accuracy_test']:.3f} on test "
        f"(dense {document['dense']['accuracy_test']:.3f})<br>"
    )


def _add_epoch(figure: go.Figure, facts: StudyFacts, epoch: int, dense_ms: float) -> None:
    field, colour = quality_accuracy(facts), COLOURS[epoch % len(COLOURS)]
    measured = [trial for trial in facts.trials if trial.epoch == epoch and trial.measured]
    front = sorted(front_of(measured), key=lambda trial: trial.latency_ms)
    front = thin(front, max(1, _MAX_FRONT_POINTS // facts.opened))
    dots = thin(measured, max(1, _MAX_TRIALS // facts.opened))
    figure.add_scatter(
        **_trial_points(dots, field, dense_ms),
        mode="markers",
        legendgroup=f"epoch {epoch}",
        showlegend=False,
        marker={"color": colour, "size": 5, "opacity": 0.4},
    )
    figure.add_scatter(
        **_trial_points(front, field, dense_ms),
        mode="lines+markers",
        line={"color": colour, "width": 2, "shape": "hv"},
        marker={"color": colour, "size": 6},
        name=f"epoch {epoch + 1}",
        legendgroup=f"epoch {epoch}",
    )


def _trial_points(trials: Sequence[TrialRecord], field: str, dense_ms: float) -> dict[str, Any]:
    return {
        "x": [round(dense_ms / trial.latency_ms, 3) for trial in trials],
        "y": [round(getattr(trial, field), 4) for trial in trials],
        "text": [
            f"trial {trial.number}, {trial.keep_ratio:.3f} kept, {trial.latency_ms:.1f} ms"
            for trial in trials
        ],
        "hovertemplate": "%{text} (predicted)<br>%{x}x, %{y}<extra></extra>",
    }


def _measured_policies(document: Mapping[str, Any], key: str) -> list[_MeasuredPolicies]:
    """Return the result rows that have a value of ``key``, by entry of the legend."""
    chosen = document["chosen"]
    chosen_trial = None if chosen is None else chosen["trial"]
    finalists = [row for row in document["front"] if row["trial"] != chosen_trial]
    entries = [
        ("dense", INK, [document["dense"]]),
        ("uniform", GREY, [document["uniform"]]),
        ("uniform by kind", VERMILION, [document["uniform_by_kind"]]),
        ("finalists", PURPLE, finalists),
        ("chosen", PURPLE, [chosen]),
    ]
    measured = []
    for name, colour, rows in entries:
        with_value = [row for row in rows if row is not None and row[key] is not None]
        if with_value:
            measured.append(_MeasuredPolicies(name, colour, with_value))
    return measured


def _add_measured(figure: go.Figure, document: Mapping[str, Any], split: str, symbol: str) -> None:
    """Add the policies measured at the end; validation is one entry of the legend, and hidden."""
    key, on_test = f"accuracy_{split}", split == "test"
    entries = [entry for entry in _measured_policies(document, key) if entry.name != "dense"]
    for index, (name, colour, rows) in enumerate(entries):
        figure.add_scatter(
            x=[round(row["speedup_measured"], 3) for row in rows],
            y=[round(row[key], 4) for row in rows],
            error_y=error_bars(rows, key, colour),
            mode="markers",
            name=f"{name}, test" if on_test else "all on validation",
            visible=True if on_test else "legendonly",
            legendgroup=f"{name}, test" if on_test else split,
            showlegend=on_test or index == 0,
            marker=marker(colour, symbol, large=name == "chosen"),
            text=[f"{_label(row, name)}, {split}" for row in rows],
            hovertemplate="%{text}<br>%{x}x (measured), %{y}<extra></extra>",
        )


def _label(row: Mapping[str, Any], name: str) -> str:
    return name if row["trial"] is None else f"trial {row['trial']}"


def proxy_and_test(document: Mapping[str, Any]) -> go.Figure | None:
    """Draw accuracy on the proxy against accuracy on test, with 95 % intervals.

    For a policy below the diagonal, the accuracy on the proxy was too high.
    """
    entries = _measured_policies(document, "accuracy_test")
    if not entries:
        return None
    figure = go.Figure()
    values: list[float] = []
    for name, colour, rows in entries:
        for row in rows:
            values += [row["accuracy_proxy"], row["accuracy_test"]]
            for key in ("accuracy_proxy_interval", "accuracy_test_interval"):
                values += row[key] or ()
        figure.add_scatter(
            x=[round(row["accuracy_proxy"], 4) for row in rows],
            y=[round(row["accuracy_test"], 4) for row in rows],
            error_x=error_bars(rows, "accuracy_proxy", colour),
            error_y=error_bars(rows, "accuracy_test", colour),
            mode="markers",
            name=name,
            marker=marker(colour, "diamond", large=name == "chosen"),
            text=[_label(row, name) for row in rows],
            hovertemplate="%{text}<br>proxy %{x}, test %{y}<extra></extra>",
        )
    ends = [max(0.0, round(min(values) - 0.02, 3)), min(1.02, round(max(values) + 0.02, 3))]
    figure.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        line={"color": GREY, "dash": "dash", "width": 1},
        name="test = proxy",
        hoverinfo="skip",
    )
    proxy, test = (measure_of_split(document, split) for split in ("proxy", "test"))
    apply_layout(
        figure,
        f"{test.capitalize()} on test against {proxy} on the proxy",
        f"with 95 % intervals; below the line, {test} on test is lower than {proxy} on the proxy"
        if proxy != test
        else f"with 95 % intervals; below the line, {test} on test is lower than on the proxy",
        f"{proxy} on the proxy, cross-fitted ({_metric(document, 'proxy')})",
        f"{test} on test ({_metric(document, 'test')})",
    )
    figure.update_xaxes(range=ends)
    figure.update_yaxes(range=ends)
    return figure


def finalists_by_study(documents: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw the finalists of several studies: accuracy on test against measured latency."""
    figure = go.Figure()
    measures = dict.fromkeys(measure_of_split(document, "test") for document in documents)
    for index, document in enumerate(documents):
        rows = [row for row in document["front"] if row["accuracy_test"] is not None]
        chosen = None if document["chosen"] is None else document["chosen"]["trial"]
        colour = COLOURS[index % len(COLOURS)]
        figure.add_scatter(
            x=[round(row["latency_ms_measured"], 2) for row in rows],
            y=[round(row["accuracy_test"], 4) for row in rows],
            error_y=error_bars(rows, "accuracy_test", colour),
            mode="markers",
            name=document["study"],
            marker={
                "color": colour,
                "symbol": index // len(COLOURS),
                "size": [13 if row["trial"] == chosen else 7 for row in rows],
            },
            text=[f"{document['study']}, trial {row['trial']}" for row in rows],
            hovertemplate="%{text}<br>%{x} ms, %{y}<extra></extra>",
        )
    apply_layout(
        figure,
        "Finalists on test",
        "with 95 % bars; the chosen policies are large",
        "latency, measured (ms)",
        f"{' or '.join(measures)} on test",
    )
    return figure
