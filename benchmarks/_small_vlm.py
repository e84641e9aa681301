"""What the scripts that train the embedded models share: the models' shape, pictures, descent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from effllava_optuna.tasks.digits import enlarge

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from effllava_optuna.tasks.digits import Scans

IMAGE_TOKENS = 16
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '</s>\n' if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def processor_around(tokenizer: Tokenizer, longest: int) -> LlavaProcessor:
    """Build a processor: ``tokenizer``, which knows `SPECIAL`, and pictures of 32 x 32 pixels.

    Args:
        tokenizer: One token a word.
        longest: Tokens that a conversation may have.
    """
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"height": 32, "width": 32},
            do_center_crop=False,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            extra_special_tokens={"image_token": "<image>"},
            padding_side="left",
            model_max_length=longest,
        ),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token="<image>",
    )


def build_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """Build a model for ``processor``'s words, with random weights."""
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=64,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return LlavaForConditionalGeneration(config)


def message(text: str, *, pictured: bool) -> dict[str, Any]:
    """Write a user's message, which begins with the picture if there is one."""
    image = [{"type": "image"}] if pictured else []
    return {"role": "user", "content": [*image, {"type": "text", "text": text}]}


def prompt_text(processor: LlavaProcessor, messages: list[dict[str, Any]]) -> str:
    """Write ``messages`` up to the assistant's turn, each image token as often as it is needed."""
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True)
    return text.replace("<image>", "<image>" * IMAGE_TOKENS)


def four_tiles(
    pool: Scans, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw four scans: their digits, and their tiles ``(4, 16, 16)``, each shifted by a pixel."""
    chosen = rng.integers(len(pool.labels), size=4)
    tiles = enlarge(pool.pixels[chosen])
    shifts = rng.integers(-1, 2, size=(4, 2))
    shifted = [np.roll(tile, tuple(s), (0, 1)) for tile, s in zip(tiles, shifts, strict=True)]
    return pool.labels[chosen], np.stack(shifted)


def collate(
    rows: Sequence[Sequence[int]], pictures: Sequence[NDArray[np.uint8]], pad: int
) -> dict[str, torch.Tensor]:
    """Make the model's inputs of token ``rows``, padded on the left, and their ``pictures``.

    Args:
        rows: The tokens of each conversation.
        pictures: One a row, shape ``(32, 32, 3)``; or none at all.
        pad: The token to pad with.
    """
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    for row, line in zip(ids, rows, strict=True):
        row[longest - len(line) :] = torch.tensor(line)
    inputs = {"input_ids": ids, "attention_mask": (ids != pad).long()}
    if pictures:
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
        inputs["pixel_values"] = (pixels - 0.5) / 0.5
    return inputs


def descend(
    model: Any,
    loss: Callable[[], torch.Tensor],
    watch: Callable[[int], None],
    *,
    steps: int,
    learning_rate: float,
    warm: float = 0.3,
) -> None:
    """Train with AdamW on a one-cycle schedule.

    Args:
        model: Is trained in place.
        loss: Draws a batch and computes its loss; called once a step.
        watch: Told every hundredth step.
        steps: How many.
        learning_rate: The highest of the cycle.
        warm: Share of the steps until it is reached, in (0, 1).
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=warm
    )
    model.train()
    for step in range(1, steps + 1):
        value = loss()
        optimizer.zero_grad()
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            watch(step)
    model.eval()
