"""Colours, layout, error bars and thinning, which all figures share.

Points are thinned and numbers are rounded, because the dashboard stores a figure in pieces of two
kilobytes, one row each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import plotly.graph_objects as go

    from effllava_optuna.policy import Component, ModelStructure
    from effllava_optuna.report.document import StudyFacts

# Okabe and Ito (2008): distinguishable for colour-blind readers. These are for epochs.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#F0E442")
VERMILION, PURPLE = "#D55E00", "#CC79A7"
INK, GREY, GRID = "#222222", "#777777", "#E4E4E4"
MAX_LINE_POINTS = 60
_LINE_HEIGHT = 18  # of a subtitle, pixels
# A title has room beside the two buttons that remain: picture, and whole axes.
_REMOVED_BUTTONS = ("zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale")
KINDS = {
    "attn": "attention (key/value groups)", "mlp": "MLP channels", "block": "blocks",
    "tokens": "image tokens",
}  # fmt: skip


def thin(items: Sequence[Any], limit: int) -> list[Any]:
    """Return every n-th item, the last one included, so that at most ``limit`` remain."""
    step = max(1, -(-len(items) // limit))
    return list(items[::-1][::step][::-1])


def quality_accuracy(facts: StudyFacts) -> str:
    """Return the field of a trial record that has the accuracy in the quality."""
    return "expected" if facts.accuracy == "expected" else "accuracy"


def panels_of(structure: ModelStructure) -> dict[tuple[str, str], list[Component]]:
    """Group the components by tower and kind; each group is drawn in one panel."""
    panels: dict[tuple[str, str], list[Component]] = {}
    for component in structure.components:
        panels.setdefault((component.tower, str(component.kind)), []).append(component)
    return panels


def marker(colour: str, symbol: str, *, large: bool) -> dict[str, Any]:
    """Return the marker of policies that were measured at the end of a study."""
    return {
        "color": colour,
        "symbol": symbol,
        "size": 12 if large else 9,
        "line": {"color": INK if large else "white", "width": 1},
    }


def error_bars(rows: Sequence[Mapping[str, Any]], key: str, colour: str) -> dict[str, Any] | None:
    """Return the error bars of the 95 % intervals of ``key``; None if one is not known."""
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


def apply_layout(
    figure: go.Figure, title: str, subtitle: str, x_title: str | None, y_title: str | None
) -> None:
    """Set titles, fonts, margins and grid; without a template, which would be most of the size."""
    figure.update_layout(
        template="none",
        title={
            "text": f"{title}<br><sub>{subtitle}</sub>",
            "x": 0.01,
            "xanchor": "left",
            "y": 0.96,
            "yanchor": "top",
            "font": {"size": 16},
        },
        font={"color": INK, "size": 12},
        margin={"l": 65, "r": 20, "t": 75 + _LINE_HEIGHT * subtitle.count("<br>"), "b": 50},
        modebar={"remove": _REMOVED_BUTTONS},
        legend={"orientation": "h", "x": 0, "y": -0.24, "yanchor": "top"},
        paper_bgcolor="white",
        plot_bgcolor="white",
    )
    figure.update_xaxes(title_text=x_title, gridcolor=GRID, zeroline=False, automargin=True)
    figure.update_yaxes(title_text=y_title, gridcolor=GRID, zeroline=False, automargin=True)
