"""Pruned decoders with random weights, whose answers are printable texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from effllava_optuna import Policy, sliced
from effllava_optuna.policy import Kind, Ranking
from effllava_optuna.surgery import LoadedModel
from tests.surgery.export.engine_families import SIZES
from tests.surgery.family_models import text_decoder
from tests.surgery.gguf.trained_tokenizers import train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from effllava_optuna.policy import ComponentId

_LLAMA_3: dict[str, Any] = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
_GEMMA: dict[str, Any] = {"sliding_window": 8, "query_pre_attn_scalar": 32}
_LINEAR: dict[str, Any] = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
_BY_KIND = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
}


class Kindred(NamedTuple):
    """A family of decoders.

    Attributes:
        config: Its configuration class.
        rule: How its tokenizer splits texts.
        architecture: llama.cpp's name of it.
        settings: Further settings.
    """

    config: str
    rule: str
    architecture: str = "deci"
    settings: Mapping[str, Any] = {}


KINDRED = {
    "gpt-2": Kindred("LlamaConfig", "gpt-2"),
    "SmolLM2": Kindred("LlamaConfig", "smollm", settings={"tie_word_embeddings": True}),
    "Llama 3": Kindred("LlamaConfig", "llama-bpe", settings={"rope_parameters": _LLAMA_3}),
    "linear": Kindred("LlamaConfig", "gpt-2", settings={"rope_parameters": _LINEAR}),
    "biases": Kindred(
        "LlamaConfig", "sentencepiece", settings={"attention_bias": True, "mlp_bias": True}
    ),
    "Mistral": Kindred("MistralConfig", "sentencepiece", settings={"sliding_window": None}),
    "Qwen2": Kindred("Qwen2Config", "qwen2"),
    "Qwen3": Kindred("Qwen3Config", "qwen2", "qwen3"),
    "Gemma": Kindred("GemmaConfig", "sentencepiece", "gemma"),
    "Gemma 2": Kindred("Gemma2Config", "sentencepiece", "gemma2", _GEMMA),
    "Gemma 3": Kindred(
        "Gemma3TextConfig", "sentencepiece", "gemma3", {**_GEMMA, "num_hidden_layers": 7}
    ),
    "Gemma 3, linear": Kindred(
        "Gemma3TextConfig",
        "sentencepiece",
        "gemma3",
        {**_GEMMA, "num_hidden_layers": 7, "rope_parameters": _BY_KIND},
    ),
}


def randomise(model: Any, tokenizer: Any) -> None:
    """Give a model random weights whose answers are printable."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:  # so large that answers do not repeat one token
            weight.data.normal_(0, 0.15, generator=generator)
        elif name.endswith("bias"):
            weight.data.normal_(0, 0.3, generator=generator)
    printable = torch.tensor([_is_printable(text) for text in _texts(tokenizer)])
    model.get_output_embeddings().weight.data[~printable] = 0  # of no token that is generated


def dense_decoder(family: Kindred) -> LoadedModel:
    """Create a decoder with a tokenizer."""
    tokenizer = train_tokenizer(family.rule)
    size = len(tokenizer)
    model = text_decoder(family.config, **{**SIZES, **family.settings, "vocab_size": size})
    randomise(model, tokenizer)
    return LoadedModel.of(model, tokenizer, family.config, depth=True)


def pruned_decoder(family: Kindred) -> LoadedModel:
    """Prune heads, channels and a block, each block to widths of its own."""
    loaded = dense_decoder(family)
    rng = np.random.default_rng(1)
    widths: dict[ComponentId, int] = {}
    for component in loaded.structure.components:
        if component.kind is Kind.BLOCK:
            keeps_all = family.architecture in {"gemma2", "gemma3"}  # which number their windows
            widths[component.id] = int(keeps_all or component.layer != 1)
        elif component.kind is Kind.ATTN:
            widths[component.id] = 1 + component.layer % component.width
        else:
            widths[component.id] = int(rng.integers(40, component.width))
    scores = {c.id: rng.random(c.width) for c in loaded.structure.components}
    ranking = Ranking.from_scores(loaded.structure, "random", scores)
    return sliced(loaded, Policy.of(loaded.structure, widths), ranking)


def decoder_that_ends(token: str, text: str) -> LoadedModel:
    """Create a decoder whose greedy answer to a text has a special token after a few others."""
    tokenizer = train_tokenizer("gpt-2")
    tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    model: Any = text_decoder("LlamaConfig", **{**SIZES, "vocab_size": len(tokenizer)})
    randomise(model, tokenizer)
    loaded = LoadedModel.of(model, tokenizer, "LlamaConfig")
    tokens = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        for _ in range(3):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], 1)
    rows = model.get_output_embeddings().weight.data
    rows[tokenizer.convert_tokens_to_ids(token)] = 1.02 * rows[tokens[0, -1]]
    return loaded


def pruned_llava(tower: str) -> LoadedModel:
    """Prune decoder and tower of a small LLaVA, ``clip`` or ``siglip``, with random weights."""
    tokenizer = train_tokenizer("gpt-2")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size, pixels, patch = len(tokenizer), 32, 8
    vision: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": pixels, "patch_size": patch,
    }  # fmt: skip
    classes = {"clip": (CLIPVisionConfig, CLIPImageProcessor),
               "siglip": (SiglipVisionConfig, SiglipImageProcessor)}  # fmt: skip
    vision_config, image_processor = classes[tower]
    selection = "default" if tower == "clip" else "full"
    config = LlavaConfig(
        text_config=LlamaConfig(**{**SIZES, "vocab_size": size}),
        vision_config=vision_config(**vision),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2 if tower == "clip" else -1,
        vision_feature_select_strategy=selection,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    randomise(model, tokenizer)
    sides = {"shortest_edge": pixels} if tower == "clip" else {"height": pixels, "width": pixels}
    processor = LlavaProcessor(
        image_processor=image_processor(
            size=sides, crop_size={"height": pixels, "width": pixels}
        ),
        tokenizer=tokenizer, patch_size=patch, vision_feature_select_strategy=selection,
        num_additional_image_tokens=int(tower == "clip"),
    )  # fmt: skip
    loaded = LoadedModel.of(model, processor, tower, towers=("language", "vision"))
    widths = {}
    for component in loaded.structure.components:
        mlp = 64 + 16 * component.layer  # as wide as the input of the tower in its first block
        widths[component.id] = 1 + component.layer % 2 if component.kind is Kind.ATTN else mlp
    rng = np.random.default_rng(2)
    scores = {c.id: rng.random(c.width) for c in loaded.structure.components}
    ranking = Ranking.from_scores(loaded.structure, "random", scores)
    return sliced(loaded, Policy.of(loaded.structure, widths), ranking)


def _texts(tokenizer: Any) -> list[str]:
    texts: list[str] = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return texts


def _is_printable(text: str) -> bool:
    spaces = "\u0120\u2581"
    return not text.startswith("<") and all(c.isascii() or c in spaces for c in text)
