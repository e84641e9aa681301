"""The parts that both scripts that train embedded models use: model, pictures, training loop."""

from __future__ import annotations

from dataclasses import dataclass
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

from effllava_optuna.tasks.data.digits import upscale

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from effllava_optuna.tasks.data.digits import DigitScans

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
    """Create a processor for pictures of 32 x 32 pixels.

    Args:
        tokenizer: Has one token for each word, and those of `SPECIAL`.
        longest: Largest number of tokens of a conversation.
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
    """Create a model with random weights for the words of ``processor``."""
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
    """Return a message of the user, with or without a picture at its beginning."""
    image = [{"type": "image"}] if pictured else []
    return {"role": "user", "content": [*image, {"type": "text", "text": text}]}


def prompt_text(processor: LlavaProcessor, messages: list[dict[str, Any]]) -> str:
    """Return ``messages`` as text up to the turn of the assistant, image tokens repeated."""
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True)
    return text.replace("<image>", "<image>" * IMAGE_TOKENS)


def four_tiles(
    scans: DigitScans, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw four scans; return their digits and tiles ``(4, 16, 16)``, shifted by up to a pixel."""
    chosen = rng.integers(len(scans.labels), size=4)
    tiles = upscale(scans.pixels[chosen])
    shifts = rng.integers(-1, 2, size=(4, 2))
    shifted = [np.roll(tile, tuple(s), (0, 1)) for tile, s in zip(tiles, shifts, strict=True)]
    return scans.labels[chosen], np.stack(shifted)


def collate(
    rows: Sequence[Sequence[int]], pictures: Sequence[NDArray[np.uint8]], pad: int
) -> dict[str, torch.Tensor]:
    """Return the inputs of the model for conversations, padded on the left.

    Args:
        rows: Tokens of each conversation.
        pictures: A picture of each conversation, shape ``(32, 32, 3)``; or none at all.
        pad: Token for padding.
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


@dataclass(frozen=True, slots=True)
class Schedule:
    """A one-cycle schedule of AdamW.

    Attributes:
        steps: Number of steps.
        learning_rate: The highest learning rate.
        warmup: Share of the steps until it is reached, in (0, 1).
    """

    steps: int
    learning_rate: float
    warmup: float = 0.3


def minimize(
    model: Any,
    loss: Callable[[], torch.Tensor],
    report: Callable[[int], None],
    schedule: Schedule,
) -> None:
    """Train a model in place with AdamW.

    Args:
        model: The model.
        loss: Draws a batch and computes its loss; called once for each step.
        report: Called with the number of the step, every hundred steps.
        schedule: Steps and learning rates.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.02)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        schedule.learning_rate,
        total_steps=schedule.steps,
        pct_start=schedule.warmup,
    )
    model.train()
    for step in range(1, schedule.steps + 1):
        value = loss()
        optimizer.zero_grad()
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        one_cycle.step()
        if step % 100 == 0:
            report(step)
    model.eval()
