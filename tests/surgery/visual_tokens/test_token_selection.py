"""Selection of image tokens, against a slow readable twin."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.surgery.visual_tokens.token_selection import (
    diverse_tokens,
    kept_tokens,
    reduced_features,
    reduced_pictures,
    reduced_prompt,
)

SETTINGS = {"ratio": 0.5, "selection": "diversity", "seed": 0, "tile": None, "token": "<i>"}


def picture(tokens: int = 9, seed: int = 0, channels: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, channels, generator=generator)


def selected_by_the_twin(features: torch.Tensor, kept: int) -> list[int]:
    """Add the token whose nearest selected neighbour is the farthest, one after the other."""
    points = [row / np.linalg.norm(row) for row in features.double().numpy()]

    def distance(a: int, b: int) -> float:
        return round(4096 * float(1 - points[a] @ points[b]))

    selected: list[int] = []
    while len(selected) < kept:
        others = [index for index in range(len(points)) if index not in selected]
        gaps = {
            index: min(distance(index, other) for other in selected or others if other != index)
            for index in others
        }
        selected.append(max(gaps, key=lambda index: gaps[index]))
    return sorted(selected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kept", [1, 2, 5, 11, 12])
def test_diverse_tokens_are_those_of_the_twin(seed: int, kept: int) -> None:
    pictures = torch.stack([picture(12, seed), picture(12, seed + 100)])
    expected = [selected_by_the_twin(each, kept) for each in pictures]
    assert diverse_tokens(pictures, kept).tolist() == expected


def test_many_large_pictures_are_selected_from_one_by_one() -> None:
    """Their distances would not fit into memory at once."""
    pictures = torch.stack([picture(6000, seed, channels=3) for seed in range(2)])
    expected = torch.cat([diverse_tokens(each[None], 3) for each in pictures])
    assert torch.equal(diverse_tokens(pictures, 3), expected)
    assert 2 * 6000**2 > 2**26


def test_autocast_does_not_change_the_selection() -> None:
    alike = picture(1, seed=1, channels=64) + 0.3 * picture(48, channels=64)
    expected = diverse_tokens(alike[None], 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(diverse_tokens(alike[None], 16), expected)


def test_positions_that_were_drawn_without_gradients_can_be_trained_through() -> None:
    settings = SETTINGS | {"selection": "random", "seed": 77}
    with torch.inference_mode():
        reduced_pictures(picture()[None], settings)
    features = picture()[None].requires_grad_()
    torch.autograd.backward(reduced_pictures(features, settings).square().sum())
    assert features.grad is not None


def test_two_tokens_alike_are_kept_last() -> None:
    features = torch.eye(4)[[0, 0, 1, 2]] * torch.tensor([[1.0], [9.0], [1.0], [1.0]])
    (index,) = diverse_tokens(features[None], 3).tolist()
    assert {0, 1} & set(index) != {0, 1}
    assert {2, 3} <= set(index)


def test_of_equal_tokens_the_first_is_selected_whatever_the_rounding_errors() -> None:
    features = picture(12, channels=64)
    features[[3, 7, 11]] = picture(1, seed=1, channels=64)[0]  # line breaks
    expected = diverse_tokens(features[None], 8)
    for seed in range(20):
        noise = 1 + 1e-6 * picture(12, seed, 64)
        assert torch.equal(diverse_tokens((features * noise)[None], 8), expected)


def test_a_token_without_direction_does_no_harm() -> None:
    features = picture()
    features[3] = 0
    index = diverse_tokens(features[None], 9)
    assert index.tolist() == [list(range(9))]


@pytest.mark.parametrize("selection", ["diversity", "random"])
def test_kept_tokens_are_unchanged_and_in_order(selection: str) -> None:
    features = picture(16)
    (kept,) = reduced_pictures(features[None], SETTINGS | {"selection": selection})
    rows = [features.tolist().index(row) for row in kept.tolist()]
    assert len(rows) == 8
    assert rows == sorted(set(rows))


def test_random_positions_depend_on_the_seed_alone() -> None:
    positions = torch.arange(64.0)[:, None].repeat(2, 1, 1)
    settings = SETTINGS | {"selection": "random"}
    first, second = reduced_pictures(positions, settings)
    assert torch.equal(first, second)
    assert torch.equal(reduced_pictures(positions, settings)[0], first)
    assert not torch.equal(reduced_pictures(positions, settings | {"seed": 1})[0], first)


def test_pooling_averages_squares() -> None:
    grid = torch.arange(16.0).reshape(1, 16, 1)
    settings = SETTINGS | {"selection": "pooling", "ratio": 0.25}
    assert reduced_pictures(grid, settings).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert kept_tokens(576, 0.33, "pooling") == 196
    with pytest.raises(ValueError, match="no square"):
        kept_tokens(577, 0.33, "pooling")


def test_gradients_reach_what_stays_and_nothing_else() -> None:
    features = picture()[None].requires_grad_()
    torch.autograd.backward(reduced_pictures(features, SETTINGS).sum())
    assert features.grad is not None
    touched = features.grad[0].abs().sum(1) > 0
    assert int(touched.sum()) == kept_tokens(9, 0.5, "diversity")


@pytest.mark.parametrize("form", ["tensor", "list", "unlike", "tiles"])
@pytest.mark.parametrize("selection", ["diversity", "random", "pooling"])
def test_each_picture_is_reduced_on_its_own(form: str, selection: str) -> None:
    settings: dict[str, Any] = SETTINGS | {"selection": selection}
    counts = {"tensor": (16, 16), "list": (16, 16), "unlike": (4, 16), "tiles": (16, 32)}[form]
    settings["tile"] = 16 if form == "tiles" else None
    pictures = [picture(count, seed) for seed, count in enumerate(counts)]
    reduced = reduced_features(torch.stack(pictures) if form == "tensor" else pictures, settings)
    assert len(reduced) == 2
    for each, result in zip(pictures, reduced, strict=True):
        tiles = each.reshape(-1, 16, 5) if form == "tiles" else [each]
        alone = torch.cat([reduced_pictures(tile[None], settings)[0] for tile in tiles])
        torch.testing.assert_close(result, alone)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.floats(0.01, 1.0),
    st.sampled_from([None, 4, 16]),
)
def test_a_prompt_has_as_many_tokens_as_there_are_features(
    counts: list[int], ratio: float, tile: int | None
) -> None:
    settings = SETTINGS | {"ratio": ratio, "tile": tile}
    prompt = "".join("a" + "<i>" * count for count in counts)
    features = reduced_features([picture(count) for count in counts], settings)
    shortened = reduced_prompt(prompt, settings)
    runs = [len(run) // 3 for run in re.findall("(?:<i>)+", shortened)]
    assert runs == [len(part) for part in features]
    assert shortened.replace("<i>", "") == "a" * len(counts)
