"""Small models of many families with random weights, and inputs for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import transformers
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping

_IMAGE, _START, _END = 3, 5, 6
_SIZE = 28  # pixels
_TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": _SIZE, "patch_size": 14,
}  # fmt: skip
_CLIP = _VISION | {"model_type": "clip_vision_model", "projection_dim": 48}
_SIGLIP = _VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}
_QWEN_IDS = {
    "image_token_id": _IMAGE, "video_token_id": 4,
    "vision_start_token_id": _START, "vision_end_token_id": _END,
}  # fmt: skip
_QWEN3 = {"out_hidden_size": 64, "intermediate_size": 48, "num_position_embeddings": 16}
_MIXED = ["sliding_attention", "sliding_attention", "full_attention"]
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e4}


def _rope(*section: int, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": _PLAIN_ROPE | {"mrope_section": list(section)} | more}


def _text(model_type: str, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, **_TEXT, **more}


def _qwen_tower(**more: Any) -> dict[str, Any]:
    return {"depth": 3, "hidden_size": 32, "num_heads": 4, "patch_size": 16, **more}


def _pixels(*shape: int, **more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {"pixel_values": torch.randn(*shape, generator=generator), **more}


_ONE_IMAGE = _pixels(1, 3, _SIZE, _SIZE)
_TWO_IMAGES = _pixels(1, 2, 3, _SIZE, _SIZE)
_TILES = _pixels(1, 3, 3, _SIZE, _SIZE, image_sizes=torch.tensor([[28, 50]]))
_GRID = torch.tensor([[1, 4, 4]])
_PATCHES_14 = _pixels(16, 3 * 2 * 14 * 14, image_grid_thw=_GRID)
_PATCHES_16 = _pixels(16, 3 * 2 * 16 * 16, image_grid_thw=_GRID)


class Family(NamedTuple):
    """A family of models.

    Attributes:
        config: Name of the configuration class.
        settings: Arguments of the configuration class.
        image: Keyword arguments of the model that contain an image; empty for text decoders.
        image_tokens: Image tokens in the prompt.
        masks: Names of the arguments that are 1 at image tokens and 0 elsewhere.
    """

    config: str
    settings: Mapping[str, Any]
    image: Mapping[str, Any]
    image_tokens: int = 0
    masks: tuple[str, ...] = ()

    def build(self) -> Any:
        """Create the model."""
        config = getattr(transformers, self.config)(**self.settings)
        factory = (
            transformers.AutoModelForImageTextToText
            if self.image
            else transformers.AutoModelForCausalLM
        )
        model = factory.from_config(config)
        # The stock initialisation (std 0.02) makes logits nearly constant: any two models agree.
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                nn.init.normal_(weight, std=0.12, generator=generator)
            elif name.endswith("bias"):
                nn.init.normal_(weight, std=0.1, generator=generator)
            elif "gate" in name:  # initially 0 in the cross-attention of mllama
                nn.init.constant_(weight, 0.3)
        return model.eval()

    def inputs(self) -> dict[str, torch.Tensor]:
        """Create a prompt, with an image if the family takes one."""
        before = [1, _START] if "mm_token_type_ids" in self.masks else [1]
        after = [_END] if "mm_token_type_ids" in self.masks else []
        prompt = [*before, *[_IMAGE] * self.image_tokens, *after, 7, 9, 11, 13, 20, 31]
        ids = torch.tensor([prompt])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.image}
        inputs |= dict.fromkeys(self.masks, (ids == _IMAGE).long())
        if "aspect_ratio_ids" in self.image:
            inputs["cross_attention_mask"] = torch.ones(1, len(prompt), 1, 2, dtype=torch.long)
        return inputs


def _llava_like(
    config: str, vision: dict[str, Any], text: dict[str, Any], **more: Any
) -> tuple[str, dict[str, Any]]:
    return config, {
        "vision_config": vision, "text_config": text, "image_token_index": _IMAGE, **more,
    }  # fmt: skip


def _internvl(*, norm: bool) -> dict[str, Any]:
    vision = _VISION | {"image_size": [_SIZE, _SIZE], "patch_size": [14, 14]}
    return {
        "vision_config": vision | {"use_qk_norm": norm, "attention_bias": True},
        "text_config": _text("qwen2"), "image_token_id": _IMAGE, "downsample_ratio": 0.5,
    }  # fmt: skip


_IDEFICS = {
    "vision_config": _VISION, "text_config": _text("llama"), "image_token_id": _IMAGE,
    "scale_factor": 2,
}  # fmt: skip
_TILED = {"image_grid_pinpoints": [[28, 28], [28, 56], [56, 28]]}


def _gemma4(**more: Any) -> Family:
    """Return a model of the form of Gemma 4; the smallest ones share keys between blocks."""
    text = {
        "head_dim": 16, "layer_types": _MIXED, "sliding_window": 8, "global_head_dim": 32,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64,
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12,
        "patch_size": 4, "pooling_kernel_size": 2, "position_embedding_size": 64,
    }  # fmt: skip
    return Family(
        "Gemma4Config",
        {
            "text_config": _TEXT | text | more, "vision_config": vision,
            "audio_config": None, "image_token_id": _IMAGE,
        },
        _pixels(
            1, 16, 3 * 16,
            image_position_ids=torch.cartesian_prod(torch.arange(4), torch.arange(4))[None],
        ),
        4, masks=("mm_token_type_ids",),
    )  # fmt: skip


FAMILIES: Mapping[str, Family] = {
    "llava": Family(
        *_llava_like("LlavaConfig", _CLIP, _text("llama"), vision_feature_layer=-2), _ONE_IMAGE, 4
    ),
    "llava_next": Family(
        *_llava_like("LlavaNextConfig", _CLIP, _text("llama"), **_TILED), _TILES, 14
    ),
    "llava_onevision": Family(
        *_llava_like(
            "LlavaOnevisionConfig", _SIGLIP, _text("qwen2"), video_token_index=4,
            vision_feature_layer=-1, vision_feature_select_strategy="full", **_TILED,
        ),
        _TILES, 14,
    ),
    "qwen2_vl": Family(
        "Qwen2VLConfig",
        {
            "text_config": _TEXT | _rope(2, 3, 3),
            "vision_config": _qwen_tower(
                embed_dim=32, hidden_size=64, mlp_ratio=2, patch_size=14
            ),
            **_QWEN_IDS,
        },
        _PATCHES_14, 4, masks=("mm_token_type_ids",),
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VLConfig",
        {
            "text_config": _TEXT | _rope(2, 3, 3),
            "vision_config": _qwen_tower(
                out_hidden_size=64, intermediate_size=48, patch_size=14,
                fullatt_block_indexes=[1], window_size=56,
            ),
            **_QWEN_IDS,
        },
        _PATCHES_14, 4, masks=("mm_token_type_ids",),
    ),
    "qwen3_vl": Family(
        "Qwen3VLConfig",
        {
            "text_config": _TEXT | {"head_dim": 16} | _rope(4, 2, 2, mrope_interleaved=True),
            "vision_config": _qwen_tower(**_QWEN3, deepstack_visual_indexes=[0, 1]),
            **_QWEN_IDS,
        },
        _PATCHES_16, 4, masks=("mm_token_type_ids",),
    ),
    "qwen3_5": Family(
        "Qwen3_5Config",
        {
            "text_config": _TEXT
            | {
                "num_hidden_layers": 4, "head_dim": 16,
                "layer_types": ["linear_attention", "full_attention"] * 2,
                "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            }
            | _rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5),
            "vision_config": _qwen_tower(**_QWEN3),
            **_QWEN_IDS,
        },
        _PATCHES_16, 4, masks=("mm_token_type_ids",),
    ),
    "internvl": Family("InternVLConfig", _internvl(norm=False), _ONE_IMAGE, 1),
    "internvl (6B tower)": Family("InternVLConfig", _internvl(norm=True), _ONE_IMAGE, 1),
    "idefics3": Family("Idefics3Config", _IDEFICS, _TWO_IMAGES, 2),
    "smolvlm": Family("SmolVLMConfig", _IDEFICS, _TWO_IMAGES, 2),
    "paligemma": Family(
        *_llava_like(
            "PaliGemmaConfig", _SIGLIP | {"projection_dim": 64},
            _text("gemma", head_dim=16, num_key_value_heads=1),
            projection_dim=64, hidden_size=64,
        ),
        _ONE_IMAGE, 4, masks=("token_type_ids",),
    ),
    "gemma3": Family(
        *_llava_like(
            "Gemma3Config", _SIGLIP,
            _text("gemma3_text", head_dim=16, sliding_window=8, layer_types=_MIXED),
            mm_tokens_per_image=4,
        ),
        _ONE_IMAGE, 4, masks=("token_type_ids",),
    ),
    "gemma4": _gemma4(),
    "gemma4 (shared keys)": _gemma4(
        num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
    ),
    "mistral3": Family(
        *_llava_like(
            "Mistral3Config",
            _VISION | {"model_type": "pixtral", "image_size": 56, "head_dim": 12},
            _text("mistral"), spatial_merge_size=2,
        ),
        _pixels(1, 3, 56, 56, image_sizes=torch.tensor([[56, 56]])), 4,
    ),
    "mllama": Family(
        *_llava_like(
            "MllamaConfig",
            {
                "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
                "num_global_layers": 2, "attention_heads": 4, "image_size": _SIZE,
                "patch_size": 14, "vision_output_dim": 144,
                "intermediate_layers_indices": [0, 2],
                "supported_aspect_ratios": [[1, 1], [1, 2]], "max_num_tiles": 2,
            },
            _TEXT
            | {
                "num_hidden_layers": 4, "cross_attention_layers": [1, 3],
                "rope_parameters": _PLAIN_ROPE,
            },
        ),
        _pixels(
            1, 1, 2, 3, _SIZE, _SIZE, aspect_ratio_ids=torch.tensor([[2]]),
            aspect_ratio_mask=torch.ones(1, 1, 2, dtype=torch.long),
        ),
        1,
    ),
    "aya_vision": Family(
        *_llava_like(
            "AyaVisionConfig", _SIGLIP, _text("cohere2", head_dim=16, layer_types=_MIXED),
            downsample_factor=2,
        ),
        _ONE_IMAGE, 1,
    ),
    "blip-2": Family(
        "Blip2Config",
        {
            "vision_config": _VISION,
            "qformer_config": {
                "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                "intermediate_size": 80, "encoder_hidden_size": 48, "vocab_size": 64,
                "cross_attention_frequency": 2,
            },
            "text_config": {
                "model_type": "opt", "vocab_size": 64, "hidden_size": 64, "ffn_dim": 96,
                "num_hidden_layers": 3, "num_attention_heads": 4,
                "max_position_embeddings": 128, "word_embed_proj_dim": 64,
                "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            },
            "num_query_tokens": 4, "image_token_index": _IMAGE,
        },
        _ONE_IMAGE, 4,
    ),
    "llama": Family("LlamaConfig", _TEXT, {}),
    "qwen2": Family("Qwen2Config", _TEXT, {}),
    "qwen3": Family("Qwen3Config", _TEXT | {"head_dim": 16}, {}),
    "mistral": Family("MistralConfig", _TEXT, {}),
    "gemma": Family("GemmaConfig", _TEXT | {"head_dim": 16}, {}),
    "diffllama": Family("DiffLlamaConfig", _TEXT | {"num_hidden_layers": 4}, {}),
}  # fmt: skip
