"""The picture of a policy."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from effllava_optuna.policy import Kind
from effllava_optuna.report.figures.policy_picture import draw_policy

if TYPE_CHECKING:
    from effllava_optuna.policy import ModelStructure


def test_the_height_of_a_bar_is_the_width_ratio(structure: ModelStructure) -> None:
    def blue_pixels(width: int) -> int:
        widths = {
            component.id: width if component.kind is Kind.ATTN else 1
            for component in structure.components
        }
        picture = Image.open(io.BytesIO(draw_policy(structure, widths, "a policy")))
        assert picture.format == "PNG"
        counts = picture.convert("RGB").getcolors(1 << 20)
        assert counts is not None
        return {colour: count for count, colour in counts}[0, 0x72, 0xB2]

    assert blue_pixels(4) == pytest.approx(2 * blue_pixels(2), rel=0.02)
