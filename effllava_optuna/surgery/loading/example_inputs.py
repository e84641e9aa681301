"""Example inputs for any checkpoint: a fixed image and two short questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from effllava_optuna.errors import ModelError, describe
from effllava_optuna.processors import encode, takes_pictures
from effllava_optuna.surgery.apply.encoded_inputs import answer_logits, encode_images
from effllava_optuna.surgery.apply.reduced_model import KEEP_ALL, find_obstacle, reduced_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

EXAMPLE_QUESTION = "what is in the picture?"
EXAMPLE_QUESTIONS = (EXAMPLE_QUESTION, "what digit is at the top left?")
_TRIED = 0.5  # share of the image tokens


def build_example_inputs(processor: Any) -> dict[str, torch.Tensor]:
    """Return keyword arguments of the model: two questions about an image.

    A tokenizer, which takes no image, encodes one question only, and so does a processor whose
    tokenizer has no padding token: one question needs no padding.
    """
    if not takes_pictures(processor):
        return encode(processor, text=list(EXAMPLE_QUESTIONS[:1]))
    pads = processor.tokenizer.pad_token_id is not None
    questions = EXAMPLE_QUESTIONS if pads else EXAMPLE_QUESTIONS[:1]
    return encode_example(
        processor,
        [format_example(processor, question) for question in questions],
        padding=pads,
        padding_side="left",
    )


def encode_example(processor: Any, prompts: Sequence[str], **options: Any) -> dict[str, Any]:
    """Return keyword arguments of a model: prompts about the example picture."""
    # All processors accept one list of images per prompt.
    images = [[example_picture()] for _ in prompts]
    return encode(processor, text=list(prompts), images=images, **options)


def example_picture(size: int = 64) -> Image.Image:
    """Draw a square picture with sides of ``size`` pixels: colours differ in each place."""
    waves = np.add.outer(np.arange(size) * 3, np.arange(size) * 5) % 256
    return Image.fromarray(np.stack([waves, waves.T, 255 - waves], -1).astype(np.uint8))


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


def describe_image_tokens(loaded: LoadedModel) -> str:
    """Return how many image tokens an example has and whether they can be reduced, in words."""
    if loaded.visual_tokens is not None:
        share = f"{loaded.visual_tokens.ratio:.0%}, by {loaded.visual_tokens.selection}"
        return f"reduced to {share}"
    obstacle = find_obstacle(loaded.model, loaded.processor) or _failure_of(loaded, "diversity")
    if obstacle:
        return f"cannot be reduced: {obstacle}"
    token = loaded.model.config.image_token_id
    row = build_example_inputs(loaded.processor)["input_ids"][0]
    return f"{int((row == token).sum())} of the example picture; can be reduced"


def verify_reduction(loaded: LoadedModel, selection: str = "diversity") -> None:
    """Check by a run on the example that the image tokens of a model can be reduced.

    Raises:
        ModelError: They cannot, are reduced already, or cannot be selected in this way.
    """
    failure = _failure_of(loaded, selection)
    if failure:
        raise ModelError(
            f"The image tokens of {loaded.source} cannot be reduced: {failure}.", hint=KEEP_ALL
        )


@torch.inference_mode()
def _failure_of(loaded: LoadedModel, selection: str) -> str:
    """Return why the model does not compute with half of its image tokens; empty if it does."""
    with reduced_tokens(loaded, _TRIED, selection=selection) as reduced:
        try:
            inputs = build_example_inputs(reduced.processor)
            answer_logits(reduced, encode_images(reduced, inputs))
        except ModelError:
            raise
        except Exception as error:  # whatever the code of a family raises
            return f"its code does not compute with {_TRIED:.0%} of them ({describe(error)})"
    return ""
