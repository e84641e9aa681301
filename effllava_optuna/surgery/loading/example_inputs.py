"""Example inputs for any checkpoint: a fixed image and two short questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from effllava_optuna.processors import takes_pictures

if TYPE_CHECKING:
    import torch

_SIZE = 64  # pixels
EXAMPLE_QUESTION = "what is in the picture?"
_QUESTIONS = (EXAMPLE_QUESTION, "what digit is at the top left?")


def build_example_inputs(processor: Any) -> dict[str, torch.Tensor]:
    """Return keyword arguments of the model: two questions about an image.

    A tokenizer, which takes no image, encodes one question only, and so does a processor whose
    tokenizer has no padding token: one question needs no padding.
    """
    if not takes_pictures(processor):
        return dict(processor(list(_QUESTIONS[:1]), return_tensors="pt"))
    waves = np.add.outer(np.arange(_SIZE) * 3, np.arange(_SIZE) * 5) % 256
    image = Image.fromarray(np.stack([waves, waves.T, 255 - waves], -1).astype(np.uint8))
    pads = processor.tokenizer.pad_token_id is not None
    questions = _QUESTIONS if pads else _QUESTIONS[:1]
    prompts = [format_example(processor, question) for question in questions]
    options = {"padding": pads, "padding_side": "left", "return_tensors": "pt"}
    # All processors accept one list of images per prompt.
    return dict(processor(text=prompts, images=[[image] for _ in prompts], **options))


def format_example(processor: Any, question: str = EXAMPLE_QUESTION, *, pictures: int = 1) -> str:
    """Format a question about pictures by the chat template, or without one if there is none."""
    if not getattr(processor, "chat_template", None):
        # Some processors insert the image tokens themselves.
        inserts = getattr(processor, "num_query_tokens", None) is not None
        return question if inserts else f"{processor.image_token}\n{question}"
    content = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
    prompt: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return prompt
