"""What encodes the inputs of a model: a processor of pictures and texts, or a tokenizer."""

from __future__ import annotations

from typing import Any


def takes_pictures(processor: Any) -> bool:
    """Return whether a processor is that of a vision-language model."""
    return hasattr(processor, "image_processor")


def encode(processor: Any, **options: Any) -> dict[str, Any]:
    """Return keyword arguments of a model, without the labels that PaliGemma's processor adds."""
    inputs = processor(return_tensors="pt", **options)
    return {name: value for name, value in inputs.items() if name != "labels"}


def tokenizer_of(processor: Any) -> Any:
    """Return the tokenizer of a processor; that of a language model is the tokenizer itself."""
    return getattr(processor, "tokenizer", processor)
