"""Generate tokens by given settings alone, whatever generation_config.json the checkpoint has."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from transformers import GenerationConfig


def generate_tokens(
    model: Any, inputs: Mapping[str, Any], settings: GenerationConfig, **arguments: Any
) -> torch.Tensor:
    """Generate tokens by ``settings`` alone.

    Args:
        model: A transformers model.
        inputs: Keyword arguments of the model.
        settings: How to generate; a value that is None is transformers' default.
        arguments: Further arguments of ``generate``, such as a stopping criterion.

    Returns:
        The prompts and their continuations, shape ``(samples, tokens)``.
    """
    with _replaced_settings(model, settings):
        tokens: torch.Tensor = model.generate(**inputs, generation_config=settings, **arguments)
    return tokens


def special_tokens(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Return the special tokens of a checkpoint as values of a generation configuration."""
    shipped = model.generation_config
    end, padding = shipped.eos_token_id, tokenizer.pad_token_id
    return {
        "bos_token_id": shipped.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id if end is None else end,
        "pad_token_id": shipped.pad_token_id if padding is None else padding,
        "decoder_start_token_id": shipped.decoder_start_token_id,
    }


@contextmanager
def _replaced_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Replace the generation configuration of a model and of the models inside it.

    An argument of ``generate`` is not enough: it takes each value that is None from the model's
    configuration (transformers PR 40428), such as a number of sequences, another return type, or
    a method whose code is on the hub. BLIP-2 generates with the model inside it.
    """
    shipped = [
        (module, vars(module)["generation_config"])
        for module in model.modules()
        if "generation_config" in vars(module)
    ]
    try:
        for module, _ in shipped:
            module.generation_config = settings
        yield
    finally:
        for module, config in shipped:
            module.generation_config = config
