"""A policy as a PNG: one bar per component, whose height is the width ratio."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from effllava_optuna.report.figures.figure_style import COLOURS, GRID, INK, KINDS, panels_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import Component, ComponentId, ModelStructure

_WIDTH, _PANEL_HEIGHT, _HEADER_HEIGHT = 960, 215, 44  # pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 54, 34  # margins of a panel, pixels
_MAX_LABELS = 32  # of layers; more would overlap


def draw_policy(structure: ModelStructure, widths: Mapping[ComponentId, int], title: str) -> bytes:
    """Draw the width ratio of each layer as a PNG, a panel for each tower and kind.

    Args:
        structure: The structure of the model.
        widths: Units kept, by component.
        title: Title of the picture.
    """
    panels = panels_of(structure)
    picture = Image.new("RGB", (_WIDTH, _HEADER_HEIGHT + _PANEL_HEIGHT * len(panels)), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((16, 14), title, INK, ImageFont.load_default(20))
    for index, ((tower, kind), components) in enumerate(panels.items()):
        top = _HEADER_HEIGHT + _PANEL_HEIGHT * index
        colour = COLOURS[list(KINDS).index(kind)]
        draw.text((_LEFT, top + 8), f"{tower}: {KINDS[kind]}", INK, ImageFont.load_default(16))
        _draw_panel(draw, top, components, widths, colour)
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return file.getvalue()


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    top: int,
    components: Sequence[Component],
    widths: Mapping[ComponentId, int],
    colour: str,
) -> None:
    font = ImageFont.load_default(13)
    y_zero, y_full = top + _PANEL_HEIGHT - _BOTTOM, top + _TOP
    for percent in (0, 50, 100):
        y = y_zero + (y_full - y_zero) * percent / 100
        draw.text((_LEFT - 8, y), f"{percent} %", INK, font, anchor="rm")
    pitch = (_WIDTH - _LEFT - _RIGHT) / len(components)
    gap = max(1.0, min(10.0, 0.15 * pitch))
    label_step = -(-len(components) // _MAX_LABELS)
    for index, component in enumerate(components):
        left = _LEFT + index * pitch
        right, middle = left + pitch - gap, left + (pitch - gap) / 2
        ratio = widths[component.id] / component.width
        draw.rectangle((left, y_full, right, y_zero), GRID)
        if ratio:
            draw.rectangle((left, y_zero + (y_full - y_zero) * ratio, right, y_zero), colour)
        if index % label_step == 0:
            draw.text((middle, y_zero + 6), str(component.layer), INK, font, anchor="mt")
        if pitch > 60:
            label = f"{widths[component.id]} of {component.width}"
            draw.text((middle, y_full - 5), label, INK, font, anchor="mb")
