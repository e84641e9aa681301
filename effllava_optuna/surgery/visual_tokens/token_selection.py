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
    arXiv 2503.02175, algorithm 1). It is rounded: of equal tokens, such as line breaks, the first
    one is selected, whatever the rounding errors of their features are.

    Args:
        features: Shape ``(pictures, tokens, channels)``.
        kept: Number of tokens to select, at most ``tokens``.

    Returns:
        Indices in ascending order, shape ``(pictures, kept)``.
    """
    at_once = max(1, 2**26 // features.shape[1] ** 2)  # at most 256 MB of distances, or a picture
    parts = [distant_tokens(part, kept) for part in torch.split(features.detach(), at_once)]
    return torch.cat(parts)


def distant_tokens(features: torch.Tensor, kept: int) -> torch.Tensor:
    """Select tokens of a few pictures; see `diverse_tokens`.

    Nothing is copied between host and device, so that a CUDA graph can capture it.
    """
    points = torch.nn.functional.normalize(features.float(), dim=-1)
    with torch.autocast(features.device.type, enabled=False):  # which would round the cosines
        cosines = points @ points.transpose(1, 2)
    distances = ((1 - cosines) * 4096).round().nan_to_num()
    itself = torch.eye(distances.shape[1], dtype=torch.bool, device=distances.device)
    nearest = distances.masked_fill(itself, float("inf")).amin(-1)
    selected: list[torch.Tensor] = []
    for _ in range(kept):
        index = nearest.argmax(-1, keepdim=True)
        to_index = distances.gather(1, index[..., None].expand(-1, -1, distances.shape[1]))[:, 0]
        nearest = torch.minimum(nearest, to_index) if selected else to_index
        nearest = nearest.scatter(1, index, -float("inf"))
        selected.append(index)
    return torch.cat(selected, 1).sort(1).values


@functools.cache
def random_index(count: int, kept: int, seed: int, device: torch.device) -> torch.Tensor:
    """Draw ``kept`` of ``count`` positions, ascending; they are copied to the device once."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(mode=False):  # usable in training, too
        return torch.randperm(count, generator=generator)[:kept].sort().values.to(device)


def random_tokens(features: torch.Tensor, kept: int, seed: int) -> torch.Tensor:
    """Select the same positions of all pictures at random; see `diverse_tokens`."""
    index = random_index(features.shape[1], kept, seed, features.device)
    return index.expand(len(features), kept)


def pooled_tokens(features: torch.Tensor, kept: int) -> torch.Tensor:
    """Average a square grid of tokens to a smaller one of ``kept`` tokens."""
    side, smaller = int(features.shape[1] ** 0.5 + 0.5), int(kept**0.5 + 0.5)
    grid = features.transpose(1, 2).reshape(len(features), -1, side, side)
    pooled = torch.nn.functional.adaptive_avg_pool2d(grid.float(), smaller).to(features.dtype)
    return pooled.flatten(2).transpose(1, 2)


def kept_index(features: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """Return the indices of the tokens that stay, shape ``(pictures, kept)``, ascending.

    Args:
        features: Shape ``(pictures, tokens, channels)``.
        settings: ``ratio``, ``selection`` (not ``pooling``) and ``seed``.
    """
    kept = kept_tokens(features.shape[1], settings["ratio"], settings["selection"])
    if settings["selection"] == "random":
        return random_tokens(features, kept, settings["seed"])
    return diverse_tokens(features, kept)


def reduced_pictures(features: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """Reduce the tokens of pictures that have equally many.

    Args:
        features: Shape ``(pictures, tokens, channels)``.
        settings: ``ratio``, ``selection`` and ``seed``.

    Returns:
        Shape ``(pictures, kept, channels)``; gradients flow to the features that stay.
    """
    kept = kept_tokens(features.shape[1], settings["ratio"], settings["selection"])
    if kept == features.shape[1]:
        return features
    if settings["selection"] == "pooling":
        return pooled_tokens(features, kept)
    index = kept_index(features, settings)
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
        tokens, channels = picture.shape  # no tokens: padding of a row with fewer pictures
        size = tile if is_tiled(tokens, tile) else max(1, tokens)
        parts.append(picture.reshape(-1, size, channels))
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


def read_placed(
    original: Any, owner: Any, settings: dict[str, Any], pixel_values: Any, *rest: Any, **more: Any
) -> Any:
    """Do the same for a model whose tokens keep their positions in the whole picture.

    The model's ``image_places`` are what `read_positions` needs: for each picture, the number of
    its tokens and the indices of those that stay.
    """
    if owner.reads_video:
        return original(pixel_values, *rest, **more)
    ahead, owner.image_ahead = owner.image_ahead, None
    if ahead is not None and ahead[0] is pixel_values:
        return ahead[1]
    output = original(pixel_values, *rest, **more)
    pictures = list(output.pooler_output)
    indices = [kept_index(picture.unsqueeze(0), settings)[0] for picture in pictures]
    owner.image_places = [
        (len(picture), index) for picture, index in zip(pictures, indices, strict=True)
    ]
    output.pooler_output = [pictures[n][index] for n, index in enumerate(indices)]
    levels = getattr(output, "deepstack_features", None)  # of Qwen3-VL
    if levels is not None:
        output.deepstack_features = [
            [level[n][index] for n, index in enumerate(indices)] for level in levels
        ]
    return output


def read_whole(original: Any, owner: Any, *arguments: Any, **options: Any) -> Any:
    """Call ``get_video_features`` of a model, which may read frames as it reads pictures."""
    owner.reads_video = True
    try:
        return original(*arguments, **options)
    finally:
        owner.reads_video = False


def read_positions(
    original: Any, owner: Any, input_ids: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call ``get_rope_index`` of a model for whole pictures, and keep the positions that stay.

    ``generate`` computes positions before features: then the features are computed here, and the
    next call of `read_placed` returns them. The tokens of videos all stay.
    """
    pixels, grids = options.get("pixel_values"), options.get("image_grid_thw")
    if grids is None:
        unchanged: tuple[torch.Tensor, torch.Tensor] = original(input_ids, **options)
        return unchanged
    if pixels is not None:
        owner.image_ahead = (pixels, owner.get_image_features(pixels, grids))
    kinds, mask = options["mm_token_type_ids"], options.get("attention_mask")
    videos, seconds = options.get("video_grid_thw"), options.get("second_per_grid_ts")
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []
    deltas, picture, video = [], 0, 0
    for row, ids in enumerate(input_ids):
        seen = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask[row].bool()
        ids, kind = ids[seen], kinds[row][seen]
        whole, stays, first, shown = [], [], picture, video
        runs = torch.nn.functional.pad(kind, (1, 0)).diff().nonzero().flatten().tolist()
        starts = sorted({0, *runs})
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            places = torch.arange(start, end, device=ids.device)
            stay = torch.ones_like(places, dtype=torch.bool)
            if kind[start] == 1:
                count, index = owner.image_places[picture]
                picture += 1
                if len(index) != end - start:
                    raise ValueError(f"{end - start} image tokens for {len(index)} features")
                places = places[:1].expand(count)
                stay = torch.zeros_like(places, dtype=torch.bool)
                stay[index.to(stay.device)] = True
            whole.append(places)
            stays.append(stay)
        taken, kept = torch.cat(whole), torch.cat(stays)
        own = {"mm_token_type_ids": kind[taken].unsqueeze(0), "attention_mask": None}
        own["image_grid_thw"] = grids[first:picture] if picture > first else None
        if videos is not None:
            merged, left = owner.config.vision_config.spatial_merge_size**2, int((kind == 2).sum())
            while left > 0:  # tokens of videos
                left -= int(videos[video].prod()) // merged
                video += 1
            own["video_grid_thw"] = videos[shown:video] if video > shown else None
            own |= {} if seconds is None else {"second_per_grid_ts": seconds[shown:video]}
        if picture > first or video > shown:
            full = original(ids[taken].unsqueeze(0), **own)[0][:, 0]
        else:
            full = torch.arange(len(taken), device=ids.device).unsqueeze(0)
        rows.append((seen, full[:, kept]))
        deltas.append(full.max() + 1 - len(ids))
    axes = max(len(full) for _, full in rows)
    positions = input_ids.new_zeros(axes, *input_ids.shape)
    for row, (seen, full) in enumerate(rows):
        positions[:, row, seen] = full.to(positions.dtype)
    return positions, torch.stack(deltas).unsqueeze(1)


def reduce_model(model: Any, settings: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """Make a model reduce image tokens.

    Returns:
        The module that has ``get_image_features``, and the names of the attributes that were set.
    """
    parts = (part for part in model.children() if hasattr(part, "get_image_features"))
    owner = next(parts, model)
    original = owner.get_image_features
    changed: dict[str, Any] = {}
    if hasattr(owner, "get_rope_index"):
        read = functools.partial(read_placed, original, owner, settings)
        place = functools.partial(read_positions, owner.get_rope_index, owner)
        changed["get_rope_index"] = functools.update_wrapper(place, owner.get_rope_index)
        changed |= {"image_places": [], "image_ahead": None, "reads_video": False}
        if hasattr(owner, "get_video_features"):
            watch = functools.partial(read_whole, owner.get_video_features, owner)
            changed["get_video_features"] = functools.update_wrapper(
                watch, owner.get_video_features
            )
    else:
        read = functools.partial(read_reduced, original, settings)
    changed["get_image_features"] = functools.update_wrapper(read, original)
    for name, value in changed.items():
        setattr(owner, name, value)
    return owner, tuple(changed)
