"""Draw curves with intervals, in panels side by side, as an SVG picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from _chart import INK, svg_head, svg_text, ticks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT, _GAP = 400, 280, 76  # pixels of a panel, and between panels
_HEAD, _LEFT, _FOOT, _LEGEND = 66, 62, 62, 22
_LEGEND_COLUMNS = 3
_MARGIN = 10  # above the largest values
_GRID = "#DDDDDD"
# Okabe and Ito (2008), for colour-blind readers
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a curve, and the interval of its value."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves in one system of axes.

    Attributes:
        title: Above it.
        x: Label of the axis across, with its unit.
        y: Label of the axis up, which has shares of 1.
        curves: The points of each curve, by its name in the legend.
        level: A name and a value that does not depend on ``x``.
    """

    title: str
    x: str
    y: str
    curves: Mapping[str, Sequence[Point]]
    level: tuple[str, float]


def draw_panels(title: str, panels: Sequence[Panel]) -> str:
    """Draw panels that share a legend; the same figures give the same bytes.

    Returns:
        The SVG document.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    colours = dict(zip(names, _COLOURS, strict=False))
    rows = -(-(len(names) + 1) // _LEGEND_COLUMNS)
    width = _LEFT + len(panels) * _WIDTH + (len(panels) - 1) * _GAP + 20
    height = _HEAD + _HEIGHT + _FOOT + rows * _LEGEND
    parts = svg_head(title, width, height)
    for number, panel in enumerate(panels):
        parts += _panel(panel, _LEFT + number * (_WIDTH + _GAP), colours)
    entries = [(name, colours[name], "") for name in names]
    entries.append((panels[0].level[0], INK, ' stroke-dasharray="6 4"'))
    column = (width - _LEFT) / _LEGEND_COLUMNS
    for number, (name, colour, dashes) in enumerate(entries):
        x = round(_LEFT + number % _LEGEND_COLUMNS * column, 1)
        y = _HEAD + _HEIGHT + _FOOT + number // _LEGEND_COLUMNS * _LEGEND
        parts.append(f'<path d="M{x} {y - 4}h24" stroke="{colour}" stroke-width="2"{dashes}/>')
        parts.append(svg_text(x + 30, y, name))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, left: int, colours: Mapping[str, str]) -> list[str]:
    """Draw axes and curves."""
    points = [point for curve in panel.curves.values() for point in curve]
    across = _scale([1.0, *(point.x for point in points)], left, left + _WIDTH - _MARGIN)
    values = [panel.level[1], *(end for point in points for end in (point.low, point.high))]
    bottom = _HEAD + _HEIGHT
    up = _scale([0.0, 1.0, *values], bottom, _HEAD + _MARGIN)
    parts = [svg_text(left, _HEAD - 16, panel.title)]
    for value in ticks(*across.ends):
        x = across(value)
        parts.append(f'<path d="M{x} {_HEAD}V{bottom}" stroke="{_GRID}"/>')
        parts.append(svg_text(x, bottom + 18, f"{value:g}", 'text-anchor="middle"'))
    for value in ticks(*up.ends):
        y = up(value)
        parts.append(f'<path d="M{left} {y}H{left + _WIDTH}" stroke="{_GRID}"/>')
        parts.append(svg_text(left - 8, y + 4, f"{value:g}", 'text-anchor="end"'))
    middle = _HEAD + _HEIGHT / 2
    parts += [
        svg_text(left + _WIDTH / 2, bottom + 40, panel.x, 'text-anchor="middle"'),
        svg_text(
            left - 44, middle, panel.y,
            f'text-anchor="middle" transform="rotate(-90 {left - 44} {middle})"',
        ),
        f'<path d="M{left} {up(panel.level[1])}h{_WIDTH}" stroke="{INK}" '
        'stroke-dasharray="6 4"/>',
    ]  # fmt: skip
    for name, curve in panel.curves.items():
        places = " ".join(f"{across(point.x)},{up(point.y)}" for point in curve)
        colour = colours[name]
        parts.append(
            f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        for point in curve:
            x = across(point.x)
            parts.append(f'<path d="M{x} {up(point.low)}V{up(point.high)}" stroke="{colour}"/>')
            parts.append(f'<circle cx="{x}" cy="{up(point.y)}" r="3.5" fill="{colour}"/>')
    return parts


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels."""

    ends: tuple[float, float]
    first: float
    last: float

    def __call__(self, value: float) -> float:
        low, high = self.ends
        return round(self.first + (self.last - self.first) * (value - low) / (high - low), 1)


def _scale(values: Sequence[float], first: float, last: float) -> _Scale:
    """Return a scale from the smallest to the largest value."""
    low, high = min(values), max(values)
    return _Scale((low, high if high > low else low + 1.0), first, last)
