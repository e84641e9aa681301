"""Models of the shape of LLaVA-1.5 with random weights, made on the device where they will run.

No download and no file: what a forward pass costs does not depend on what the weights say.
Nothing here needs more than torch, transformers and pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from effllava_optuna import Loaded
from effllava_optuna.surgery.load import DTYPES, EMBEDDED
from effllava_optuna.tasks import Sample, Split

_WORDS = "what digit is at the top left"  # words that the embedded tokenizer knows


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a model.

    Attributes:
        hidden: Width of the decoder.
        inner: Of its MLPs.
        layers: Its blocks.
        heads: Of each block; queries, keys and values have as many.
        vocabulary: Tokens.
        vision: Width, inner width, blocks and heads of the tower.
        side: Pixels of a picture's side.
        patch: Of a patch's.
        words: Of a question, before the template's.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int = 32064
    vision: tuple[int, int, int, int] = (1024, 4096, 24, 16)
    side: int = 336
    patch: int = 14
    words: int = 50

    @property
    def picture_tokens(self) -> int:
        """Count the tokens that a picture becomes."""
        return (self.side // self.patch) ** 2


SHAPES = {
    "7b": Shape(4096, 11008, 32, 32),
    "13b": Shape(5120, 13824, 40, 40),
    # Of the same make, for a CPU: one that takes about a second, and one for tests.
    "small": Shape(512, 1376, 8, 8, 512, (128, 256, 2, 4), 112, 14, 20),
    "tiny": Shape(64, 160, 2, 4, 512, (32, 64, 2, 2), 28, 14, 4),
}


def processor_of(shape: Shape) -> Any:
    """Give the processor: the embedded model's words, pictures of another size."""
    processor = AutoProcessor.from_pretrained(EMBEDDED / "digits-vlm")
    processor.image_processor.size = {"height": shape.side, "width": shape.side}
    processor.patch_size = shape.patch
    processor.tokenizer.model_max_length = shape.picture_tokens + 1024
    return processor


def config_of(shape: Shape, processor: Any) -> LlavaConfig:
    """Give the configuration of a shape."""
    tokenizer = processor.tokenizer
    width, inner, blocks, heads = shape.vision
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks,
            num_attention_heads=heads, image_size=shape.side, patch_size=shape.patch,
            projection_dim=width,
        ),
        text_config=LlamaConfig(
            vocab_size=shape.vocabulary, hidden_size=shape.hidden,
            intermediate_size=shape.inner, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
            max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=shape.picture_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip


def shaped(name: str, device: str | torch.device = "cpu", dtype: str = "float32") -> Loaded:
    """Build a model of a shape with random weights, and understand it.

    Args:
        name: One of `SHAPES`.
        device: Where its weights are made; ``meta``: they are not.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """
    shape = SHAPES[name]
    processor = processor_of(shape)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(
            config_of(shape, processor), dtype=DTYPES[dtype]
        )
    return Loaded.of(model, processor, f"{name} shape, random weights")


def questions(name: str, count: int = 64, seed: int = 0) -> tuple[Sample, ...]:
    """Ask ``count`` questions of about the length of a shape's, each about a picture of noise."""
    shape, rng = SHAPES[name], np.random.default_rng(seed)
    words = _WORDS.split()
    found = []
    for index in range(count):
        length = max(1, round(shape.words * float(rng.uniform(0.75, 1.25))))
        pixels = rng.integers(256, size=(shape.side, shape.side, 3), dtype=np.uint8)
        found.append(
            Sample(
                f"q{index}", f"p{index}", Split.PROXY, Image.fromarray(pixels),
                " ".join(words[place % len(words)] for place in range(length)),
                ("0", "1", "2", "3"), int(rng.integers(4)),
            )
        )  # fmt: skip
    return tuple(found)


@dataclass(frozen=True)
class Noise:
    """A task of questions about noise: nothing can be learned from it, but all can be run.

    Args:
        name: Of the shape.
        sizes: Samples of each role.
    """

    name: str
    sizes: dict[Split, int]
    digest: str = "noise-1"
    chance: float = 0.25

    def samples(self, split: Split) -> tuple[Sample, ...]:
        """Give the samples of a role; no two roles share a picture."""
        seed = [*Split].index(split)
        return tuple(
            Sample(
                f"{split}-{sample.id}", f"{split}-{sample.unit}", split, sample.image,
                sample.question, sample.targets, sample.answer,
            )
            for sample in questions(self.name, self.sizes[split], seed)
        )  # fmt: skip
