"""Example inputs for any checkpoint: a fixed image and two short questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

_SIZE = 64  # pixels
_QUESTIONS = ("what is in the picture?", "what digit is at the top left?")


def build_example_inputs(processor: Any) -> dict[str, torch.Tensor]:
    """Return keyword arguments of the model: two questions about an image.

    A tokenizer, which takes no image, encodes one question only: not every text model has a
    padding token.
    """
    if not hasattr(processor, "image_processor"):
        return dict(processor(list(_QUESTIONS[:1]), return_tensors="pt"))
    waves = np.add.outer(np.arange(_SIZE) * 3, np.arange(_SIZE) * 5) % 256
    image = Image.fromarray(np.stack([waves, waves.T, 255 - waves], -1).astype(np.uint8))
    prompts = [_prompt(processor, question) for question in _QUESTIONS]
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    # All processors accept one list of images per prompt.
    return dict(processor(text=prompts, images=[[image] for _ in prompts], **options))


def _prompt(processor: Any, question: str) -> str:
    if not getattr(processor, "chat_template", None):
        return f"{processor.image_token}\n{question}"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return prompt
