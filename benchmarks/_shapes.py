"""Models of the shape of LLaVA-1.5 with random weights, created on the device where they run.

Nothing is downloaded or read: the time of a forward pass does not depend on the weights. Needs
torch, transformers and pillow only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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

from effllava_optuna import LoadedModel
from effllava_optuna.checkpoint_format import EMBEDDED
from effllava_optuna.surgery.loading.loader import DTYPES
from effllava_optuna.tasks import Sample, Split

_WORDS = "what digit is at the top left"  # words that the embedded tokenizer knows


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a model.

    Attributes:
        hidden: Width of the decoder.
        inner: Width of its MLPs.
        layers: Number of its blocks.
        heads: Number of query heads of a block; as many key/value heads.
        vocabulary: Number of tokens.
        vision: Width, inner width, blocks and heads of the tower.
        side: Side of a picture, in pixels.
        patch: Side of a patch, in pixels.
        words: Words of a question, without those of the template.
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
        """Count the tokens of a picture."""
        return (self.side // self.patch) ** 2


SHAPES = {
    "7b": Shape(hidden=4096, inner=11008, layers=32, heads=32),
    "13b": Shape(hidden=5120, inner=13824, layers=40, heads=40),
    # Of the same family, for a CPU: a forward pass of about a second, and one for tests.
    "small": Shape(
        hidden=512, inner=1376, layers=8, heads=8, vocabulary=512, vision=(128, 256, 2, 4),
        side=112, words=20,
    ),
    "tiny": Shape(
        hidden=64, inner=160, layers=2, heads=4, vocabulary=512, vision=(32, 64, 2, 2), side=28,
        words=4,
    ),
}  # fmt: skip


def processor_of(shape: Shape) -> Any:
    """Return a processor with the embedded model's words and pictures of another size."""
    processor = AutoProcessor.from_pretrained(EMBEDDED / "digits-vlm")
    processor.image_processor.size = {"height": shape.side, "width": shape.side}
    processor.patch_size = shape.patch
    processor.tokenizer.model_max_length = shape.picture_tokens + 1024
    return processor


def config_of(shape: Shape, processor: Any) -> LlavaConfig:
    """Return the configuration of a shape."""
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


def shaped(name: str, device: str | torch.device = "cpu", dtype: str = "float32") -> LoadedModel:
    """Create and inspect a model of a shape with random weights.

    Args:
        name: One of `SHAPES`.
        device: Device of the weights; ``meta``: they have no data.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """
    shape = SHAPES[name]
    processor = processor_of(shape)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(
            config_of(shape, processor), dtype=DTYPES[dtype]
        )
    return LoadedModel.of(model, processor, f"{name} shape, random weights")


def questions(name: str, count: int = 64, seed: int = 0) -> tuple[Sample, ...]:
    """Return ``count`` questions about pictures of noise, of the sizes of a shape."""
    shape, rng = SHAPES[name], np.random.default_rng(seed)
    words = _WORDS.split()
    samples = []
    for index in range(count):
        length = max(1, round(shape.words * float(rng.uniform(0.75, 1.25))))
        pixels = rng.integers(256, size=(shape.side, shape.side, 3), dtype=np.uint8)
        samples.append(
            Sample(
                id=f"q{index}",
                group=f"p{index}",
                split=Split.PROXY,
                image=Image.fromarray(pixels),
                question=" ".join(words[position % len(words)] for position in range(length)),
                targets=("0", "1", "2", "3"),
                answer=int(rng.integers(4)),
            )
        )
    return tuple(samples)


@dataclass(frozen=True)
class Noise:
    """A task of questions about noise, on which everything runs and no accuracy means anything.

    Args:
        name: Name of the shape.
        sizes: Number of samples of each split.
    """

    name: str
    sizes: dict[Split, int]
    digest: str = "noise-1"
    chance: float = 0.25

    def samples(self, split: Split) -> tuple[Sample, ...]:
        """Return the samples of a split; no two splits share a picture."""
        seed = [*Split].index(split)
        return tuple(
            replace(
                sample,
                id=f"{split}-{sample.id}",
                group=f"{split}-{sample.group}",
                split=split,
            )
            for sample in questions(self.name, self.sizes[split], seed)
        )
