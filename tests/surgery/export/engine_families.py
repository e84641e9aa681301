"""Small models of families, pruned in every way, of sizes that inference engines accept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from effllava_optuna import Policy
from effllava_optuna.policy import Kind, Ranking
from effllava_optuna.surgery import FittedOutput, LoadedModel, reduced_tokens, sliced
from effllava_optuna.surgery.apply.decoding import generate_tokens
from tests.surgery.families import FAMILIES
from tests.surgery.family_models import text_decoder
from tests.surgery.visual_tokens.pictured_families import (
    PICTURED,
    Pictured,
    build_for,
    build_pictured,
    word_tokenizer,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from effllava_optuna.policy import ComponentId

# vLLM's attention on a CPU has heads of 32 columns or more.
SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 300, "max_position_embeddings": 512,
}  # fmt: skip
_UNTIED = {
    "tie_word_embeddings": False
}  # else random decoders with large embeddings repeat a token
_WINDOWS = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
}
DECODERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "mistral": ("MistralConfig", {}),
    "gemma": ("GemmaConfig", {}),
    "gemma-mqa": ("GemmaConfig", {"num_key_value_heads": 1}),  # multi-query attention
    "gemma2": ("Gemma2Config", {"query_pre_attn_scalar": 32, **_WINDOWS}),
    "gemma3_text": ("Gemma3TextConfig", {"query_pre_attn_scalar": 32, **_WINDOWS}),
}
_OUTPUTS: Mapping[str, Mapping[str, Any]] = {  # other sizes that are the decoder's hidden size
    "qwen2_vl": {"vision_config": {"hidden_size": 128}},
    "qwen2_5_vl": {"vision_config": {"out_hidden_size": 128}},
    "qwen3_vl": {"vision_config": {"out_hidden_size": 128}},
    "paligemma": {
        "vision_config": {"projection_dim": 128}, "projection_dim": 128, "hidden_size": 128,
    },
}  # fmt: skip
_OF_TILES = {
    "fake": "<fake_token_around_image>", "global": "<global-img>",
    **{f"tile{i}{j}": f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)},
}  # fmt: skip
_VIDEO_PARTS = {
    "llava_onevision": "LlavaOnevisionVideoProcessor", "qwen2_vl": "Qwen2VLVideoProcessor",
    "qwen2_5_vl": "Qwen2VLVideoProcessor", "qwen3_vl": "Qwen3VLVideoProcessor",
    "internvl": "InternVLVideoProcessor", "smolvlm": "SmolVLMVideoProcessor",
}  # fmt: skip
VISION_LANGUAGE = (
    "llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl",
    "idefics3", "smolvlm", "gemma3", "paligemma", "mistral3", "aya_vision",
)  # fmt: skip


class VideoPart(dict[str, str]):
    """What a processor writes about its part for videos, which itself needs torchvision."""

    _auto_class = None


class PixtralStandIn:
    """Encodes pictures of 2 x 2 tokens as PixtralProcessor does, and writes such a processor.

    transformers offers the class itself only where torchvision is installed.
    """

    image_token, row_end, end = "[IMG]", "[IMG_BREAK]", "[IMG_END]"

    def __init__(self) -> None:
        special = {"image_break_token": self.row_end, "image_end_token": self.end}
        self.tokenizer = word_tokenizer(self.image_token, special)
        self.image_processor = PixtralImageProcessorPil(
            size={"longest_edge": 56}, patch_size={"height": 28, "width": 28}
        )

    def __call__(self, *, text: list[str], images: list[list[Any]], return_tensors: str) -> Any:
        rows = self.image_token * 2 + self.row_end + self.image_token * 2 + self.end
        texts = [each.replace(self.image_token, rows) for each in text]
        shown = [picture for pictures in images for picture in pictures]
        pixels = self.image_processor(images=shown, return_tensors=return_tensors)
        assert pixels["image_sizes"].tolist() == [[56, 56]] * len(shown)
        return {**self.tokenizer(texts, return_tensors=return_tensors), **pixels}

    def save_pretrained(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)
        settings = {
            "processor_class": "PixtralProcessor", "patch_size": 14, "spatial_merge_size": 2,
            "image_processor": self.image_processor.to_dict(),
        }  # fmt: skip
        (directory / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def large_enough(name: str) -> LoadedModel:
    """Build a vision-language model whose decoder has heads of 32 columns."""
    family = FAMILIES[name]
    settings: dict[str, Any] = {**family.settings, **_UNTIED}
    text = {**settings["text_config"], "hidden_size": 128, "head_dim": 32, **_UNTIED}
    rope = text.get("rope_parameters")
    if rope and "mrope_section" in rope:
        parts = [part * 16 // sum(rope["mrope_section"]) for part in rope["mrope_section"]]
        text["rope_parameters"] = {**rope, "mrope_section": parts}
    settings["text_config"] = text
    for key, value in _OUTPUTS.get(name, {}).items():
        settings[key] = {**settings[key], **value} if isinstance(value, dict) else value
    family = family._replace(settings=settings)
    if name == "mistral3":
        processor = PixtralStandIn()
        model = build_for(family, processor, processor.image_token)
        return LoadedModel.of(model, processor, name)
    loaded = build_pictured(family, _made(name), name)
    generator = torch.Generator().manual_seed(0)
    for path, weight in loaded.model.named_parameters():
        if path.endswith("class_embedding"):  # of CLIP: initialised without a seed
            weight.data.normal_(0, 1, generator=generator)
    if hasattr(loaded.processor, "video_processor"):
        loaded.processor.video_processor = VideoPart(video_processor_type=_VIDEO_PARTS[name])
    return loaded


def image_mark(name: str) -> str:
    """Return what stands for a picture in a prompt of a family."""
    if name == "mistral3":
        return PixtralStandIn.image_token
    made = _made(name)
    return made.asked or made.token


def _made(name: str) -> Pictured:
    if name in ("idefics3", "smolvlm"):  # more of them than image tokens, if each is unknown
        return PICTURED[name]._replace(special=_OF_TILES)
    return PICTURED[name]


def decoder(name: str) -> LoadedModel:
    """Build a text decoder whose answers do not repeat one token."""
    config, more = DECODERS[name]
    model = text_decoder(config, **{**SIZES, **_UNTIED, **more})
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data.normal_(0, 0.15, generator=generator)
    return LoadedModel.of(model, None, name)


@torch.no_grad()
def greedy_tokens(model: Any, inputs: Mapping[str, Any], count: int) -> list[int]:
    """Generate tokens in transformers; the end token does not end them, and is not suppressed."""
    greedy = GenerationConfig(max_new_tokens=count, do_sample=False)
    tokens = generate_tokens(model, inputs, greedy)
    return list(tokens[0, inputs["input_ids"].shape[1] :].tolist())


def prune_in_every_way(dense: LoadedModel, image_tokens: float = 1.0) -> LoadedModel:
    """Prune heads, channels and a block unevenly, in all towers, with compensated outputs.

    Args:
        dense: The model; the attention and the MLP of its first block get other output weights
            and biases that its class does not have.
        image_tokens: Share of the image tokens that stays.
    """
    loaded = LoadedModel.of(dense.model, dense.processor, dense.source, towers=None, depth=True)
    rng = np.random.default_rng(1)
    widths: dict[ComponentId, int] = {}
    compensation = {}
    for handle in loaded.handles:
        component = handle.component
        if component.kind is Kind.ATTN:
            width = 1 + (component.layer + 1) // 2 % component.width
        else:
            width = int(rng.integers(component.width // 3, component.width))
        widths[component.id] = width
        if component.tower == "language" and component.layer == 0:
            rows, columns = len(handle.linear(handle.output).weight), width * handle.columns
            weight, bias = rng.normal(0, 0.15, (rows, columns)), rng.normal(0, 0.3, rows)
            compensation[component.id, width] = FittedOutput(
                torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
            )
    for block in loaded.blocks:
        widths[block.component.id] = int(block.component.layer != 1)
    scores = {c.id: rng.random(c.width) for c in loaded.structure.components}
    ranking = Ranking.from_scores(loaded.structure, "random", scores)
    policy = Policy.of(loaded.structure, widths)
    with reduced_tokens(loaded, image_tokens) as network:
        return sliced(network, policy, ranking, compensation)
