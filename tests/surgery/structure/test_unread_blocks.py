"""The unread blocks of vision towers are omitted from all towers of a configuration, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from effllava_optuna.policy import Policy
from effllava_optuna.surgery import LoadedModel, masked, sliced
from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from effllava_optuna.surgery.loading.loader import read_model
from effllava_optuna.surgery.structure.unread_blocks import count_unread_blocks
from tests.surgery.families import FAMILIES, Family
from tests.surgery.family_models import CLOSE, compute_logits, random_policy

if TYPE_CHECKING:
    from pathlib import Path

_SETTINGS = FAMILIES["llava"].settings
_IMAGE, _VIDEO = 3, 4


def video_llava(**changes: Any) -> Any:
    """A model with two towers, one for pictures and one for videos, of one configuration."""
    settings = {
        **_SETTINGS, "image_token_index": _IMAGE, "video_token_index": _VIDEO,
        "image_seq_length": 4, **changes,
    }  # fmt: skip
    return Family("VideoLlavaConfig", settings, FAMILIES["llava"].image).build()


def vip_llava(**changes: Any) -> Any:
    settings = {
        **_SETTINGS,
        "image_token_index": _IMAGE,
        "vision_feature_layer": [-2, 1],
        **changes,
    }
    return Family("VipLlavaConfig", settings, FAMILIES["llava"].image).build()


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def question(*, picture: bool, video: bool) -> dict[str, torch.Tensor]:
    """A prompt with a picture of four tokens, and a video of eight frames of five tokens."""
    inputs: dict[str, torch.Tensor] = {}
    prompt = [1]
    if picture:
        prompt += [_IMAGE] * 4
        inputs["pixel_values_images"] = pixels(1, 3, 28, 28)
    if video:
        prompt += [_VIDEO] * 40
        inputs["pixel_values_videos"] = pixels(1, 8, 3, 28, 28)
    ids = torch.tensor([[*prompt, 7, 9, 11]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **inputs}


MEDIA = [{"picture": True, "video": False}, {"picture": False, "video": True},
         {"picture": True, "video": True}]  # fmt: skip


@pytest.mark.parametrize("media", MEDIA, ids=["picture", "video", "both"])
@pytest.mark.parametrize("layer", [-2, -1, 1, [-2, 1]])
def test_both_towers_of_one_configuration_lose_their_unread_blocks(
    layer: int | list[int], media: dict[str, bool], tmp_path: Path
) -> None:
    loaded = LoadedModel.of(video_llava(vision_feature_layer=layer), None, "video", towers=None)
    inputs = question(**media)
    policy, ranking = random_policy(loaded.structure, 0)
    dense = sliced(loaded, Policy.dense(loaded.structure), ranking)
    expected = compute_logits(loaded.model, inputs)
    assert torch.equal(compute_logits(dense.model, inputs), expected)
    depth = dense.model.config.vision_config.num_hidden_layers
    assert depth == {-2: 2, -1: 3, 1: 1}[layer if isinstance(layer, int) else -2]
    for tower in (dense.model.model.image_tower, dense.model.model.video_tower):
        assert len(tower.encoder.layers) == depth
    small = sliced(loaded, policy, ranking)
    with masked(loaded, policy, ranking):
        expected = compute_logits(loaded.model, inputs)
    torch.testing.assert_close(compute_logits(small.model, inputs), expected, **CLOSE)
    write_checkpoint(small, tmp_path / "small", size_plan(small))
    reloaded = read_model(tmp_path / "small", "small").eval()
    torch.testing.assert_close(compute_logits(reloaded, inputs), expected, **CLOSE)


def test_the_unread_blocks_of_several_read_layers_are_omitted() -> None:
    loaded = LoadedModel.of(vip_llava(), None, "vip", towers=None)
    inputs = FAMILIES["llava"].inputs()
    _, ranking = random_policy(loaded.structure, 0)
    dense = sliced(loaded, Policy.dense(loaded.structure), ranking)
    assert dense.model.config.vision_config.num_hidden_layers == 2
    assert list(dense.model.config.vision_feature_layer) == [-1, 1]
    assert torch.equal(compute_logits(dense.model, inputs), compute_logits(loaded.model, inputs))


def test_a_stack_of_another_configuration_keeps_all_blocks() -> None:
    """Another stack may have as many blocks as the vision tower, such as a resampler."""
    model = FAMILIES["llava"].build()
    tower = model.model.vision_tower.encoder.layers
    other = FAMILIES["llama"].build().model
    model.model.resampler = other
    assert len(other.layers) == len(tower)
    assert count_unread_blocks(model, tower) == 1
    assert count_unread_blocks(model, other.layers) == 0
    loaded = LoadedModel.of(model, None, "resampled", towers=None)
    _, ranking = random_policy(loaded.structure, 0)
    small = sliced(loaded, Policy.dense(loaded.structure), ranking)
    assert len(small.model.model.resampler.layers) == 3
    assert len(small.model.model.vision_tower.encoder.layers) == 2


def test_no_tower_loses_blocks_if_one_of_another_depth_shares_the_configuration() -> None:
    model = video_llava()
    towers = [model.model.image_tower.encoder.layers, model.model.video_tower.encoder.layers]
    assert [count_unread_blocks(model, stack) for stack in towers] == [1, 1]
    del towers[1][2]
    assert [count_unread_blocks(model, stack) for stack in towers] == [0, 0]


@pytest.mark.parametrize(
    ("name", "value"), [("deepstack_layer_map", [[-1, 0]]), ("spatial_vision_layer", -1)]
)
def test_no_block_is_unread_if_another_field_numbers_the_blocks_of_the_tower(
    name: str, value: object
) -> None:
    """Such as in Granite 4 Vision."""
    model = FAMILIES["llava"].build()
    stack: nn.ModuleList = model.model.vision_tower.encoder.layers
    assert count_unread_blocks(model, stack) == 1
    setattr(model.config, name, value)
    assert count_unread_blocks(model, stack) == 0
