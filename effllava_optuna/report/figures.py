"""Figures of a study, for the dashboard and for reports: pure functions of what is stored.

Points are thinned and numbers are rounded: the dashboard keeps a figure in pieces of two
kilobytes, one row each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from effllava_optuna.policy import front_of, hypervolume, pareto

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import Anatomy, Site, TrialRecord
    from effllava_optuna.report.document import StudyFacts

# Okabe and Ito (2008): told apart by colour-blind readers, too. These are for epochs.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#F0E442")
VERMILION, PURPLE = "#D55E00", "#CC79A7"
INK, GREY, GRID = "#222222", "#777777", "#E4E4E4"
_DOTS, _CORNERS = 500, 250  # trials, and members of fronts, of a figure that are drawn
_LOOKS = 60  # points of a line
KINDS = {"attn": "attention (key/value groups)", "mlp": "MLP channels", "block": "blocks"}


def figures(facts: StudyFacts, document: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Draw all for which there is data, by id.

    Args:
        facts: What is stored of a study.
        document: What `document` makes of it.
    """
    drawn = {
        "front_by_epoch": front_by_epoch(facts, document),
        "hypervolume": hypervolume_by_trial(facts),
        "kept_widths": kept_widths(facts, document),
        "proxy_and_test": proxy_and_test(document),
        "projector": projector_loss(facts),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def front_by_epoch(facts: StudyFacts, document: Mapping[str, Any]) -> go.Figure | None:
    """Draw accuracy against latency: each epoch's trials and front, and what was measured later.

    Trials stand at their accuracy on the proxy, which the search went by. What the end of the
    study measured stands at its accuracy on test, with 95 % intervals; validation can be switched
    on in the legend. Dense is a line: far to the right, its point would squeeze all others.
    """
    if facts.bundle is None or not any(trial.measured for trial in facts.trials):
        return None
    figure = go.Figure()
    for epoch in range(facts.opened):
        _add_epoch(figure, facts, epoch)
    dense = document["dense"]
    split = "proxy" if dense["accuracy_test"] is None else "test"
    every = [value for trace in figure.data for value in trace.x]
    figure.add_scatter(
        x=[min(every), max(every)],
        y=2 * [round(dense[f"accuracy_{split}"], 4)],
        mode="lines",
        line={"color": INK, "dash": "dash", "width": 1.5},
        name=f"dense: {dense['latency_ms']:.1f} ms, {split}",
    )
    _add_measured(figure, document, "test", "diamond")
    _add_measured(figure, document, "validation", "cross")
    kind = "mean probability of the right answer" if _merit(facts) == "expected" else "share right"
    _lay_out(
        figure,
        "Accuracy against latency, by epoch",
        f"dots and lines: the proxy, {kind}, cross-fitted"
        + ("" if split == "proxy" else "; with 95 % bars: test, share right"),
        "latency by the table (ms)",
        "accuracy",
    )
    return figure


def _merit(facts: StudyFacts) -> str:
    """Name the accuracy that the quality is made of."""
    return "expected" if facts.accuracy == "expected" else "accuracy"


def _add_epoch(figure: go.Figure, facts: StudyFacts, epoch: int) -> None:
    name, colour = _merit(facts), COLOURS[epoch % len(COLOURS)]
    mine = [trial for trial in facts.trials if trial.epoch == epoch and trial.measured]
    front = sorted(front_of(mine), key=lambda trial: trial.latency_ms)
    front = _thinned(front, max(1, _CORNERS // facts.opened))
    shown = _thinned(mine, max(1, _DOTS // facts.opened))
    figure.add_scatter(
        x=[round(trial.latency_ms, 2) for trial in shown],
        y=[round(getattr(trial, name), 4) for trial in shown],
        mode="markers",
        legendgroup=f"epoch {epoch}",
        showlegend=False,
        marker={"color": colour, "size": 5, "opacity": 0.4},
        text=[_told(trial) for trial in shown],
        hovertemplate="%{text}<br>%{x} ms, %{y}<extra></extra>",
    )
    figure.add_scatter(
        x=[round(trial.latency_ms, 2) for trial in front],
        y=[round(getattr(trial, name), 4) for trial in front],
        mode="lines+markers",
        line={"color": colour, "width": 2, "shape": "hv"},
        marker={"color": colour, "size": 6},
        name=f"epoch {epoch}",
        legendgroup=f"epoch {epoch}",
        text=[_told(trial) for trial in front],
        hovertemplate="%{text}<br>%{x} ms, %{y}<extra></extra>",
    )


def _told(trial: TrialRecord) -> str:
    return f"trial {trial.number}, {trial.kept_share:.3f} kept"


def _thinned(items: Sequence[Any], most: int) -> list[Any]:
    """Take every n-th of many items, the last one among them."""
    step = max(1, -(-len(items) // most))
    return list(items[::-1][::step][::-1])


def _measured(
    document: Mapping[str, Any], key: str
) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """Give what has an accuracy under ``key``: name, colour and rows of each group."""
    chosen = document["chosen"]
    mine = None if chosen is None else chosen["trial"]
    groups = [
        ("dense", INK, [document["dense"]]),
        ("uniform, 1 number", GREY, [document["uniform"]]),
        ("uniform, 2 numbers", VERMILION, [document["uniform2"]]),
        ("finalists", PURPLE, [row for row in document["front"] if row["trial"] != mine]),
        ("chosen", PURPLE, [chosen]),
    ]
    found = []
    for name, colour, rows in groups:
        able = [row for row in rows if row is not None and row[key] is not None]
        if able:
            found.append((name, colour, able))
    return found


def _add_measured(figure: go.Figure, document: Mapping[str, Any], split: str, symbol: str) -> None:
    """Add what the end of a study measured; validation is one entry of the legend, and off."""
    key, test = f"accuracy_{split}", split == "test"
    groups = [group for group in _measured(document, key) if group[0] != "dense"]
    for place, (name, colour, rows) in enumerate(groups):
        figure.add_scatter(
            x=[round(row["latency_ms"], 2) for row in rows],
            y=[round(row[key], 4) for row in rows],
            error_y=_bars(rows, key, colour),
            mode="markers",
            name=f"{name}, test" if test else "all on validation",
            visible=True if test else "legendonly",
            legendgroup=f"{name}, test" if test else split,
            showlegend=test or place == 0,
            marker=_marker(colour, symbol, large=name == "chosen"),
            text=[f"{_label(row, name)}, {split}" for row in rows],
            hovertemplate="%{text}<br>%{x} ms, %{y}<extra></extra>",
        )


def _marker(colour: str, symbol: str, *, large: bool) -> dict[str, Any]:
    return {
        "color": colour,
        "symbol": symbol,
        "size": 12 if large else 9,
        "line": {"color": INK if large else "white", "width": 1},
    }


def _bars(rows: Sequence[Mapping[str, Any]], key: str, colour: str) -> dict[str, Any] | None:
    """Give the error bars of 95 % intervals; None where one is not known."""
    intervals = [row[f"{key}_interval"] for row in rows]
    if any(interval is None for interval in intervals):
        return None
    pairs = list(zip(rows, intervals, strict=True))
    return {
        "type": "data",
        "symmetric": False,
        "array": [round(high - row[key], 4) for row, (_, high) in pairs],
        "arrayminus": [round(row[key] - low, 4) for row, (low, _) in pairs],
        "color": colour,
        "thickness": 1.3,
        "width": 4,
    }


def _label(row: Mapping[str, Any], name: str) -> str:
    return name if row["trial"] is None else f"trial {row['trial']}"


def hypervolume_by_trial(facts: StudyFacts) -> go.Figure | None:
    """Draw what each epoch dominates against its trials.

    It is the area in accuracy x ms between the front so far and the reference of the study.
    Values of different epochs belong to different projectors: each line starts anew.
    """
    if facts.bundle is None:
        return None
    name, reference = _merit(facts), tuple(facts.bundle["reference"])
    figure = go.Figure()
    for epoch in range(facts.opened):
        mine = [trial for trial in facts.trials if trial.epoch == epoch and trial.measured]
        if not mine:
            continue
        ends = _thinned(range(1, len(mine) + 1), _LOOKS)
        front: list[tuple[float, float]] = []
        volumes, done = [], 0
        for end in ends:
            fresh = [(getattr(t, name), t.latency_ms) for t in mine[done:end] if t.eligible]
            points = front + fresh
            front, done = [points[index] for index in pareto(points)], end
            volumes.append(round(hypervolume(front, (reference[0], reference[1])), 4))
        figure.add_scatter(
            x=ends,
            y=volumes,
            mode="lines",
            line={"color": COLOURS[epoch % len(COLOURS)], "width": 2, "shape": "hv"},
            name=f"epoch {epoch}",
        )
    if not figure.data:
        return None
    _lay_out(
        figure,
        "Hypervolume within each epoch",
        "what the front so far dominates; each epoch has a projector of its own",
        "trials measured in the epoch",
        "hypervolume (accuracy x ms)",
    )
    return figure


def kept_widths(facts: StudyFacts, document: Mapping[str, Any]) -> go.Figure | None:
    """Draw how much each layer keeps, for the policies of the front: a panel for each kind."""
    rows = sorted(document["front"], key=lambda row: row["latency_ms"])
    if facts.anatomy is None or not rows:
        return None
    panels = panels_of(facts.anatomy)
    chosen = None if document["chosen"] is None else document["chosen"]["trial"]
    labels = [
        f"trial {row['trial']}{' (chosen)' if row['trial'] == chosen else ''}" for row in rows
    ]
    columns = 1 if len(panels) <= 2 else 2
    figure = make_subplots(
        rows=-(-len(panels) // columns),
        cols=columns,
        subplot_titles=[f"{tower}: {KINDS[kind]}" for tower, kind in panels],
        vertical_spacing=0.36 / len(panels),
        horizontal_spacing=0.04,
        shared_yaxes=True,
    )
    for place, sites in enumerate(panels.values()):
        shares = [
            [round(row["policy"][site.id] / site.width, 3) for site in sites] for row in rows
        ]
        few = len(sites) <= 16
        at = {"row": place // columns + 1, "col": place % columns + 1}
        figure.add_trace(
            go.Heatmap(
                x=[site.layer for site in sites],
                y=labels,
                z=shares,
                coloraxis="coloraxis",
                xgap=1,
                ygap=1,
                texttemplate="%{z:.2f}" if few and columns == 1 else None,
                hovertemplate="layer %{x}, %{y}: %{z:.3f} kept<extra></extra>",
            ),
            **at,
        )
        figure.update_xaxes(dtick=1 if few else None, **at)
    _lay_out(
        figure,
        "Share of its width that each layer keeps",
        "policies of the front, the fastest below; columns are layers",
        None,
        None,
    )
    figure.update_annotations(font={"size": 13})
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    figure.update_layout(
        margin={"b": 30, "t": 90},
        coloraxis={
            "colorscale": "Cividis",
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": {"text": "kept"}, "tickformat": ".1f"},
        },
    )
    return figure


def panels_of(anatomy: Anatomy) -> dict[tuple[str, str], list[Site]]:
    """Group the sites that are drawn beside each other: by tower and kind."""
    panels: dict[tuple[str, str], list[Site]] = {}
    for site in anatomy.sites:
        panels.setdefault((site.tower, str(site.kind)), []).append(site)
    return panels


def proxy_and_test(document: Mapping[str, Any]) -> go.Figure | None:
    """Draw what the proxy promised against what test gave, with 95 % intervals.

    Below the diagonal, the proxy promised too much.
    """
    groups = _measured(document, "accuracy_test")
    if not groups:
        return None
    figure = go.Figure()
    every: list[float] = []
    for name, colour, rows in groups:
        for row in rows:
            every += [row["accuracy_proxy"], row["accuracy_test"]]
            for key in ("accuracy_proxy_interval", "accuracy_test_interval"):
                every += row[key] or ()
        figure.add_scatter(
            x=[round(row["accuracy_proxy"], 4) for row in rows],
            y=[round(row["accuracy_test"], 4) for row in rows],
            error_x=_bars(rows, "accuracy_proxy", colour),
            error_y=_bars(rows, "accuracy_test", colour),
            mode="markers",
            name=name,
            marker=_marker(colour, "diamond", large=name == "chosen"),
            text=[_label(row, name) for row in rows],
            hovertemplate="%{text}<br>proxy %{x}, test %{y}<extra></extra>",
        )
    ends = [max(0.0, round(min(every) - 0.02, 3)), min(1.02, round(max(every) + 0.02, 3))]
    figure.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        line={"color": GREY, "dash": "dash", "width": 1},
        name="test = proxy",
        hoverinfo="skip",
    )
    _lay_out(
        figure,
        "What the proxy promised, and what test gave",
        "95 % intervals; below the line, the proxy promised too much",
        "accuracy on the proxy, cross-fitted (share right)",
        "accuracy on test (share right)",
    )
    figure.update_xaxes(range=ends)
    figure.update_yaxes(range=ends)
    return figure


def projector_loss(facts: StudyFacts) -> go.Figure | None:
    """Draw the loss of each projector update by its steps: held out, and trained on."""
    updates = [update for update in facts.updates if update.get("crossfit_curve")]
    if not updates:
        return None
    figure = go.Figure()
    for number, update in enumerate(updates, start=1):
        colour = COLOURS[number % len(COLOURS)]  # of the epoch that it opens
        curve = _thinned(update["crossfit_curve"], _LOOKS)
        figure.add_scatter(
            x=[look["steps"] for look in curve],
            y=[round(look["loss"], 4) for look in curve],
            mode="lines+markers",
            line={"color": colour, "width": 2},
            name=f"epoch {number}, held out",
        )
        figure.add_scatter(
            x=[0, update["steps"]],
            y=[round(update[f"proxy_loss_{when}"], 4) for when in ("before", "after")],
            mode="lines+markers",
            line={"color": colour, "width": 1.5, "dash": "dot"},
            marker={"symbol": "circle-open", "size": 9},
            name=f"epoch {number}, trained on ({update['steps']} steps taken)",
        )
    _lay_out(
        figure,
        "Loss of the projector, by update",
        "mean over the elites; as many steps are taken as held-out samples approve, or none",
        "steps",
        "answer loss (nats)",
    )
    figure.update_yaxes(rangemode="tozero")
    return figure


def _lay_out(figure: go.Figure, title: str, under: str, x: str | None, y: str | None) -> None:
    """Give all figures one look: without a template, which would be most of their size."""
    figure.update_layout(
        template="none",
        title={
            "text": f"{title}<br><sub>{under}</sub>",
            "x": 0.01,
            "xanchor": "left",
            "y": 0.96,
            "yanchor": "top",
            "font": {"size": 16},
        },
        font={"color": INK, "size": 12},
        margin={"l": 65, "r": 20, "t": 75, "b": 50},
        legend={"orientation": "h", "x": 0, "y": -0.24, "yanchor": "top"},
        paper_bgcolor="white",
        plot_bgcolor="white",
    )
    figure.update_xaxes(title_text=x, gridcolor=GRID, zeroline=False, automargin=True)
    figure.update_yaxes(title_text=y, gridcolor=GRID, zeroline=False, automargin=True)


def tests_beside(documents: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Draw the finalists of several studies: accuracy on test against measured latency."""
    figure = go.Figure()
    for place, document in enumerate(documents):
        rows = [row for row in document["front"] if row["accuracy_test"] is not None]
        chosen = None if document["chosen"] is None else document["chosen"]["trial"]
        colour = COLOURS[place % len(COLOURS)]
        figure.add_scatter(
            x=[round(row["latency_ms_measured"], 2) for row in rows],
            y=[round(row["accuracy_test"], 4) for row in rows],
            error_y=_bars(rows, "accuracy_test", colour),
            mode="markers",
            name=document["study"],
            marker={
                "color": colour,
                "symbol": place // len(COLOURS),
                "size": [13 if row["trial"] == chosen else 7 for row in rows],
            },
            text=[f"{document['study']}, trial {row['trial']}" for row in rows],
            hovertemplate="%{text}<br>%{x} ms, %{y}<extra></extra>",
        )
    _lay_out(
        figure,
        "Finalists on test",
        "with 95 % bars; the chosen ones are large",
        "latency, measured (ms)",
        "accuracy on test",
    )
    return figure
