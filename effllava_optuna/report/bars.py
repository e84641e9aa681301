"""A policy as a picture: a bar for each site, as high as the share of its width that stays."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from effllava_optuna.report.figures import COLOURS, INK, KINDS, panels_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import Anatomy, Site, SiteId

_WIDTH, _PANEL, _HEAD = 960, 215, 44  # pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 54, 34  # margins of a panel
_CUT = "#E4E4E4"  # what does not stay


def bars(anatomy: Anatomy, policy: Mapping[SiteId, int], title: str) -> bytes:
    """Draw what a policy keeps at each layer as a PNG, a panel for each tower and kind.

    Args:
        anatomy: Of the model.
        policy: Units kept, by the id of their site.
        title: Of the picture.
    """
    panels = panels_of(anatomy)
    picture = Image.new("RGB", (_WIDTH, _HEAD + _PANEL * len(panels)), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((16, 14), title, INK, ImageFont.load_default(20))
    for place, ((tower, kind), sites) in enumerate(panels.items()):
        colour = COLOURS[list(KINDS).index(kind)]
        top = _HEAD + _PANEL * place
        draw.text((_LEFT, top + 8), f"{tower}: {KINDS[kind]}", INK, ImageFont.load_default(16))
        _panel(draw, top, sites, policy, colour)
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return file.getvalue()


def _panel(
    draw: ImageDraw.ImageDraw,
    top: int,
    sites: Sequence[Site],
    policy: Mapping[SiteId, int],
    colour: str,
) -> None:
    font = ImageFont.load_default(13)
    low, high = top + _PANEL - _BOTTOM, top + _TOP
    for percent in (0, 50, 100):
        y = low + (high - low) * percent / 100
        draw.text((_LEFT - 8, y), f"{percent} %", INK, font, anchor="rm")
    pitch = (_WIDTH - _LEFT - _RIGHT) / len(sites)
    gap = max(1.0, min(10.0, 0.15 * pitch))
    every = -(-len(sites) // 32)  # labels that do not run into each other
    for place, site in enumerate(sites):
        left = _LEFT + place * pitch
        share = policy[site.id] / site.width
        draw.rectangle((left, high, left + pitch - gap, low), _CUT)
        if share:
            draw.rectangle((left, low + (high - low) * share, left + pitch - gap, low), colour)
        middle = left + (pitch - gap) / 2
        if place % every == 0:
            draw.text((middle, low + 6), str(site.layer), INK, font, anchor="mt")
        if pitch > 60:
            told = f"{policy[site.id]} of {site.width}"
            draw.text((middle, high - 5), told, INK, font, anchor="mb")
