"""Inputs that any checkpoint can answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

_SIZE = 64  # pixels
_QUESTIONS = ("what is in the picture?", "what digit is at the top left?")


def probe(processor: Any) -> dict[str, torch.Tensor]:
    """Make inputs: a fixed picture, where the processor takes one, and two short questions."""
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    if not hasattr(processor, "image_processor"):
        # A tokenizer. Not every text model has a token to pad with: one question will do.
        return dict(processor(list(_QUESTIONS[:1]), return_tensors="pt"))
    waves = np.add.outer(np.arange(_SIZE) * 3, np.arange(_SIZE) * 5) % 256
    picture = Image.fromarray(np.stack([waves, waves.T, 255 - waves], -1).astype(np.uint8))
    texts = [_asked(processor, question) for question in _QUESTIONS]
    # One list of pictures a question: what every processor understands.
    return dict(processor(text=texts, images=[[picture] for _ in texts], **options))


def _asked(processor: Any, question: str) -> str:
    if not getattr(processor, "chat_template", None):
        return f"{processor.image_token}\n{question}"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return prompt
