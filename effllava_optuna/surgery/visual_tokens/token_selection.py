"""Reduce the image tokens of a picture to the most diverse ones, without training.

Selection works on what the decoder would read, at the output of the projector: it needs no
attention, no text and no calibration, and the decoder, its cache and its kernels stay as they
are: the sequence is only shorter. The tokens that stay keep their order.

The source of all functions here is copied into the code of native exports, so that they use only
the names that are imported there.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import torch


def kept_tokens(count: int, ratio: float, selection: str) -> int:
    """Return how many of ``count`` image tokens stay: at least one."""
    if selection != "pooling":
        return max(1, int(count * ratio + 0.5))
    side = int(count**0.5 + 0.5)
    if side * side != count:
        raise ValueError(f"{count} image tokens are no square grid, which pooling needs")
    return max(1, int(side * ratio**0.5 + 0.5)) ** 2


def diverse_tokens(features: torch.Tensor, kept: int) -> torch.Tensor:
    """Select tokens greedily, each as far as possible from those selected before.

    The first is the one whose nearest neighbour is the farthest. The distance of two tokens is 1
    minus the cosine of their features: the max-min diversity of DivPrune (CVPR 2025,
    arXiv 2503.02175, algorithm 1).

    Args:
        features: Shape ``(pictures, tokens, channels)``.
        kept: Number of tokens to select, at most ``tokens``.

    Returns:
        Indices in ascending order, shape ``(pictures, kept)``.
    """
    points = torch.nn.functional.normalize(features.detach().float(), dim=-1)
    distances = (1 - points @ points.transpose(1, 2)).nan_to_num()
    pictures = torch.arange(len(distances), device=distances.device)
    others = ~torch.eye(distances.shape[1], dtype=torch.bool, device=distances.device)
    nearest = distances.masked_fill(~others, float("inf")).amin(-1)
    selected: list[torch.Tensor] = []
    for _ in range(kept):
        index = nearest.argmax(-1)
        to_index = distances[pictures, index]
        nearest = torch.minimum(nearest, to_index) if selected else to_index.clone()
        nearest[pictures, index] = -float("inf")
        selected.append(index)
    return torch.stack(selected, 1).sort(1).values


def random_tokens(features: torch.Tensor, kept: int, seed: int) -> torch.Tensor:
    """Select the same positions of all pictures at random; see `diverse_tokens`."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(features.shape[1], generator=generator)[:kept].sort().values
    return index.to(features.device).expand(len(features), kept)


def pooled_tokens(features: torch.Tensor, kept: int) -> torch.Tensor:
    """Average a square grid of tokens to a smaller one of ``kept`` tokens."""
    side, smaller = int(features.shape[1] ** 0.5 + 0.5), int(kept**0.5 + 0.5)
    grid = features.transpose(1, 2).reshape(len(features), -1, side, side)
    pooled = torch.nn.functional.adaptive_avg_pool2d(grid.float(), smaller).to(features.dtype)
    return pooled.flatten(2).transpose(1, 2)


def reduced_pictures(features: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """Reduce the tokens of pictures that have equally many.

    Args:
        features: Shape ``(pictures, tokens, channels)``.
        settings: ``ratio``, ``selection`` and ``seed``.

    Returns:
        Shape ``(pictures, kept, channels)``; gradients flow to the features that stay.
    """
    selection = settings["selection"]
    kept = kept_tokens(features.shape[1], settings["ratio"], selection)
    if kept == features.shape[1]:
        return features
    if selection == "pooling":
        return pooled_tokens(features, kept)
    index = (
        random_tokens(features, kept, settings["seed"])
        if selection == "random"
        else diverse_tokens(features, kept)
    )
    return features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[-1]))


def reduced_features(features: Any, settings: dict[str, Any]) -> Any:
    """Reduce what ``get_image_features`` returned, and return it in the same form.

    Args:
        features: A tensor of shape ``(pictures, tokens, channels)``, or for each picture one of
            shape ``(tokens, channels)``.
        settings: As for `reduced_pictures`, and ``tile``: the tokens of one tile, if the tiles of
            a picture are separated in the prompt; else None.
    """
    if isinstance(features, torch.Tensor) and features.dim() == 3:
        return reduced_pictures(features, settings)
    tile, parts = settings["tile"], []
    for picture in features:
        tokens, channels = picture.shape
        parts.append(picture.reshape(-1, tile if is_tiled(tokens, tile) else tokens, channels))
    if len({part.shape for part in parts}) > 1:
        return [reduced_pictures(part, settings).flatten(0, 1) for part in parts]
    together = reduced_pictures(torch.cat(parts), settings)
    return list(together.reshape(len(parts), -1, together.shape[-1]))


def is_tiled(count: int, tile: int | None) -> bool:
    """Return whether ``count`` tokens in a row are those of several tiles."""
    return tile is not None and count > tile and count % tile == 0


def reduced_prompt(text: str, settings: dict[str, Any]) -> str:
    """Shorten each run of image tokens in a prompt as `reduced_features` reduces its features.

    Args:
        text: A prompt, or a part of one.
        settings: As for `reduced_features`, and ``token``: the image token.
    """
    tile = settings["tile"]
    token: str = settings["token"]

    def shortened(run: re.Match[str]) -> str:
        count = len(run.group()) // len(token)
        tiles = count // tile if is_tiled(count, tile) else 1
        kept = kept_tokens(count // tiles, settings["ratio"], settings["selection"])
        return token * (tiles * kept)

    return re.sub(f"(?:{re.escape(token)})+", shortened, text)


def read_reduced(original: Any, settings: dict[str, Any], *arguments: Any, **options: Any) -> Any:
    """Call ``get_image_features`` of a model, and reduce the tokens in what it returns."""
    output = original(*arguments, **options)
    output.pooler_output = reduced_features(output.pooler_output, settings)
    return output


def reduce_model(model: Any, settings: dict[str, Any]) -> Any:
    """Make a model reduce image tokens, and return the module whose method is replaced."""
    owner = next(m for m in model.children() if hasattr(m, "get_image_features"))
    original = owner.get_image_features
    replaced = functools.partial(read_reduced, original, settings)
    owner.get_image_features = functools.update_wrapper(replaced, original)
    return owner
