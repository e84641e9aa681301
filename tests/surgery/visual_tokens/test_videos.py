"""Models that read fewer image tokens, and videos."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from effllava_optuna.surgery import LoadedModel, reduced_tokens
from tests.surgery.visual_tokens.pictured_families import load_pictured

pytestmark = [
    pytest.mark.families,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]
GRIDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
PICTURE, VIDEO = "picture", "video"


def grid_inputs(loaded: LoadedModel, rows: list[tuple[str, ...]], kept: int) -> dict[str, Any]:
    """Return prompts of words, pictures of ``kept`` tokens and videos of two frames."""
    config = loaded.model.config
    vision = config.vision_config
    channels = 3 * vision.temporal_patch_size * vision.patch_size**2
    # Qwen3-VL writes the time between the frames of a video; in the others they are one run.
    between = [11] if loaded.source.startswith("qwen3") else []
    parts = {
        PICTURE: [config.image_token_id] * kept,
        VIDEO: [config.video_token_id] * 4 + between + [config.video_token_id] * 4,
    }
    prompts = [[7, *(i for part in row for i in [*parts[part], 9])] for row in rows]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    inputs = {"input_ids": ids, "attention_mask": torch.tensor(mask), "mm_token_type_ids": kinds}
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(48, channels, generator=generator)  # of a picture, and of two frames
    pictures, videos = (sum(row.count(part) for row in rows) for part in (PICTURE, VIDEO))
    if pictures:
        inputs["pixel_values"] = patches[:16].repeat(pictures, 1)
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * pictures)
    if videos:
        inputs["pixel_values_videos"] = patches[16:].repeat(videos, 1)
        inputs["video_grid_thw"] = torch.tensor([[2, 4, 4]] * videos)
    return inputs


def last_logits(loaded: LoadedModel, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = loaded.model(**inputs).logits[:, -1]
    loaded.model.model.rope_deltas = None
    return logits


@pytest.mark.parametrize("name", GRIDS)
def test_videos_beside_pictures_have_the_positions_of_the_stock_model(name: str) -> None:
    loaded = load_pictured(name)
    rows: list[tuple[str, ...]] = [(PICTURE,), (VIDEO,), (PICTURE, VIDEO), (VIDEO, PICTURE), ()]
    inputs = grid_inputs(loaded, rows, 4)
    expected = last_logits(loaded, inputs)
    with reduced_tokens(loaded, 0.99) as reduced:  # of four tokens, all
        torch.testing.assert_close(last_logits(reduced, inputs), expected, **CLOSE)


@pytest.mark.parametrize("name", GRIDS)
def test_all_tokens_of_a_video_stay(name: str) -> None:
    loaded = load_pictured(name)
    alone = [last_logits(loaded, grid_inputs(loaded, [row], 4))[0] for row in ((VIDEO,), ())]
    with reduced_tokens(loaded, 0.5) as reduced:
        together = last_logits(
            reduced, grid_inputs(loaded, [(VIDEO,), (PICTURE, VIDEO), (PICTURE,), ()], 2)
        )
        video = last_logits(reduced, grid_inputs(loaded, [(VIDEO,)], 2))[0]
    torch.testing.assert_close(video, alone[0], **CLOSE)
    torch.testing.assert_close(together[0], alone[0], **CLOSE)
    torch.testing.assert_close(together[3], alone[1], **CLOSE)
    assert together.isfinite().all()


@pytest.mark.parametrize("name", ["internvl", "smolvlm"])
def test_frames_that_are_pictures_are_reduced_as_these_are(name: str) -> None:
    loaded = load_pictured(name)
    token = loaded.model.config.image_token_id
    frames = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))

    def prompt_of(processor: Any) -> torch.Tensor:
        seen = {"pixel_values_videos": frames[None], "pixel_values": frames[None]}
        times = SimpleNamespace(fps=1, timestamps=[0.0, 1.0], duration=2)
        text = processor.replace_video_token(seen | {"video_metadata": [times]}, 0)
        ids: torch.Tensor = processor.tokenizer(text, return_tensors="pt").input_ids
        return ids

    pixels = frames if name == "internvl" else frames[None]
    whole = prompt_of(loaded.processor)
    with reduced_tokens(loaded, 0.5) as reduced, torch.no_grad():
        fewer = prompt_of(reduced.processor)
        logits = reduced.model(input_ids=fewer, pixel_values=pixels).logits
    assert int((whole == token).sum()) == 8
    assert int((fewer == token).sum()) == 4
    assert logits.isfinite().all()
