"""Draw means with intervals as an SVG picture; the same figures give the same bytes."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _means import Mean

_NAMES, _PLOT, _FIGURES = 300, 330, 190  # pixels across
_ROW, _HEAD, _FOOT = 24, 50, 44  # pixels down
INK, _GREY, _GRID = "#222222", "#777777", "#DDDDDD"
_UP, _DOWN = (
    "#0072B2",
    "#D55E00",
)  # of Okabe and Ito (2008), for colour-blind readers


def forest(title: str, axis: str, rows: Sequence[tuple[str, Mean]]) -> str:
    """Draw a forest plot: for each mean a dot, its 95 % interval, and the figures.

    Intervals that contain 0 are grey, the others are coloured.

    Args:
        title: Title of the picture.
        axis: Label of the axis.
        rows: Names and means, from top to bottom.

    Returns:
        The SVG document.
    """
    ends = [0.0] + [end for _, mean in rows for end in (mean.low, mean.high) if np.isfinite(end)]
    ends += [mean.value for _, mean in rows]
    margin = 0.06 * (max(ends) - min(ends) or 1.0)
    low, high = min(ends) - margin, max(ends) + margin
    bottom = _HEAD + _ROW * len(rows)
    width, height = _NAMES + _PLOT + _FIGURES, bottom + _FOOT

    def across(value: float) -> float:
        return round(_NAMES + _PLOT * (value - low) / (high - low), 1)

    parts = svg_head(title, width, height)
    for tick in ticks(low, high):
        x = across(tick)
        colour = INK if tick == 0 else _GRID
        parts.append(
            f'<path d="M{x} {_HEAD - 6}V{bottom}" stroke="{colour}" fill="none"/>'
            + svg_text(x, bottom + 16, f"{tick:+g}" if tick else "0", 'text-anchor="middle"')
        )
    for number, (name, mean) in enumerate(rows):
        y = _HEAD + _ROW * number + 10
        colour = (_UP if mean.value > 0 else _DOWN) if mean.decided else _GREY
        if np.isfinite(mean.low):
            parts.append(
                f'<path d="M{across(mean.low)} {y}H{across(mean.high)}" stroke="{colour}" '
                'stroke-width="2" fill="none"/>'
            )
        parts += [
            f'<circle cx="{across(mean.value)}" cy="{y}" r="4" fill="{colour}"/>',
            svg_text(_NAMES - 12, y + 4, name, 'text-anchor="end"'),
            svg_text(_NAMES + _PLOT + 12, y + 4, mean.text("+")),
        ]
    parts += [svg_text(_NAMES + _PLOT / 2, bottom + 36, axis, 'text-anchor="middle"'), "</svg>"]
    return "\n".join(parts) + "\n"


def svg_head(title: str, width: float, height: float) -> list[str]:
    """Return the first parts of a picture of a size in pixels, with its title."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="13" role="img" '
        f'aria-label="{escape(title)}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        svg_text(12, 26, title, 'font-size="16"'),
    ]


def svg_text(x: float, y: float, content: str, attributes: str = "") -> str:
    """Return a text at a place in pixels."""
    return f'<text x="{x}" y="{y}" fill="{INK}" {attributes}>{escape(content)}</text>'


def ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers between two."""
    raw = (high - low) / 5
    scale = 10 ** np.floor(np.log10(raw))
    step = float(scale * next(factor for factor in (1, 2, 5, 10) if factor * scale >= raw))
    first, last = int(np.ceil(low / step)), int(np.floor(high / step))
    return [round(number * step, 10) for number in range(first, last + 1)]
