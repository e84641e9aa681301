"""Compute logits and text from vision features that were computed once.

The vision tower does not change during a search, so its output for an image is computed once and
stored. The projector, whose weights change between epochs, runs every time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from effllava_optuna.errors import ModelError
from effllava_optuna.processors import tokenizer_of
from effllava_optuna.surgery.apply.decoding import generate_tokens, special_tokens
from effllava_optuna.surgery.apply.recorded_vision import record_vision
from effllava_optuna.surgery.structure.prunable_parts import LANGUAGE, PROJECTOR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import Cache

    from effllava_optuna.surgery.apply.recorded_vision import RecordedVision
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel


@dataclass(frozen=True, slots=True)
class EncodedInputs:
    """Inputs of the model whose images are encoded by the vision tower.

    Attributes:
        inputs: Keyword arguments of the model without images, on the model's device.
        vision: The images, encoded. None: there are none, or they are among ``inputs`` and the
            tower encodes them in every forward pass.
        positions: Number of positions at the end whose logits are computed.
        fewer: By the share of the image tokens that a network reads, its inputs instead.
    """

    inputs: Mapping[str, Any]
    vision: RecordedVision | None
    positions: int = 1
    fewer: Mapping[float, Mapping[str, Any]] = field(default_factory=dict)

    def inputs_of(self, network: LoadedModel) -> Mapping[str, Any]:
        """Return the inputs for a network, which may read fewer image tokens."""
        reduction = network.visual_tokens
        if reduction is None:
            return self.inputs
        return self.fewer.get(reduction.ratio, self.inputs)

    @property
    def has_images(self) -> bool:
        """Return whether there are images."""
        return self.vision is not None or "pixel_values" in self.inputs

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors, also those of encoded images."""
        vision = self.vision
        images = () if vision is None else (vision.features, *vision.arguments.values())
        fewer = (tensor for some in self.fewer.values() for tensor in some.values())
        return [*self.inputs.values(), *fewer, *images]

    def select(self, index: torch.Tensor) -> EncodedInputs | None:
        """Select samples by row; None if the samples do not have one image each."""
        rows = {len(tensor) for tensor in self.inputs.values()}
        if len(rows) > 1:
            return None
        vision = None if self.vision is None else self.vision.select(index, *rows)
        if vision is None and self.vision is not None:
            return None
        if any(
            len(tensor) not in rows for some in self.fewer.values() for tensor in some.values()
        ):
            return None
        return replace(
            self,
            inputs=_selected(self.inputs, index),
            vision=vision,
            fewer={ratio: _selected(inputs, index) for ratio, inputs in self.fewer.items()},
        )

    def to(self, device: torch.device | str) -> EncodedInputs:
        """Copy the tensors to ``device``; what several inputs share, such as pictures, once."""
        moved: dict[int, torch.Tensor] = {}

        def shared(inputs: Mapping[str, Any]) -> dict[str, Any]:
            for value in inputs.values():
                if id(value) not in moved:
                    moved[id(value)] = value.to(device)
            return {name: moved[id(value)] for name, value in inputs.items()}

        return replace(
            self,
            inputs=shared(self.inputs),
            vision=None if self.vision is None else self.vision.to(device),
            fewer={ratio: shared(inputs) for ratio, inputs in self.fewer.items()},
        )


def _selected(inputs: Mapping[str, Any], index: torch.Tensor) -> dict[str, Any]:
    return {name: value[index.to(value.device)] for name, value in inputs.items()}


def _moved(inputs: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    return {name: value.to(device) for name, value in inputs.items()}


@torch.no_grad()
def encode_images(
    loaded: LoadedModel,
    inputs: Mapping[str, Any],
    positions: int = 1,
    fewer: Mapping[float, Mapping[str, Any]] | None = None,
) -> EncodedInputs:
    """Run the vision tower on the images of ``inputs``, up to the projector.

    The images remain among the inputs if the tower itself is pruned, or if no single module
    carries features from the tower to the decoder.

    Args:
        loaded: The model.
        inputs: Keyword arguments of the model.
        positions: Number of positions at the end for which `answer_logits` returns logits.
        fewer: The same prompts for networks that read a share of the image tokens, by share.
    """
    first = _moved(inputs, loaded.device)
    if "pixel_values" in first:
        first["pixel_values"] = first["pixel_values"].to(loaded.model.dtype)
    vision = None
    if "pixel_values" in first and set(loaded.towers) <= {LANGUAGE, PROJECTOR}:
        with loaded.lock:
            vision = record_vision(loaded.model, first)
    # The pictures are the same for all of them.
    pictures = {name: value for name, value in first.items() if name.startswith("pixel_")}
    recorded = () if vision is None else vision.arguments

    def remaining(moved: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in moved.items() if name not in recorded}

    others = {
        ratio: remaining(_moved(each, loaded.device) | pictures)
        for ratio, each in (fewer or {}).items()
    }
    return EncodedInputs(remaining(first), vision, positions, others)


def answer_logits(loaded: LoadedModel, encoded: EncodedInputs) -> torch.Tensor:
    """Compute the logits of the last positions: shape ``(samples, positions, vocabulary)``.

    Gradients flow to the projector if its weights require them.
    """
    # A cache would copy the keys and values of all blocks without being read.
    output = loaded.model(
        **_model_inputs(loaded, encoded), logits_to_keep=encoded.positions, use_cache=False
    )
    logits: torch.Tensor = output.logits
    return logits[:, -encoded.positions :]


def prefill(
    loaded: LoadedModel, encoded: EncodedInputs, cache: Cache | None = None
) -> tuple[torch.Tensor, Cache]:
    """Run the prompts and fill a cache.

    Args:
        loaded: The model.
        encoded: The prompts.
        cache: An empty cache; None: the model creates its default one.

    Returns:
        The most likely next tokens, shape ``(samples, 1)``, and the cache.

    Raises:
        ModelError: The model returns no cache, so that generation step by step needs other code.
    """
    cache_argument = {} if cache is None else {"past_key_values": cache}
    output = loaded.model(
        **_model_inputs(loaded, encoded), **cache_argument, use_cache=True, logits_to_keep=1
    )
    filled = getattr(output, "past_key_values", None)
    if filled is None:
        raise ModelError(
            f"{loaded.source} ({type(loaded.model).__name__}) returns no key/value cache, so that "
            "its latency cannot be measured.",
            hint="Use a model of another family.",
        )
    return output.logits[:, -1:].argmax(-1), filled


class GeneratedText(NamedTuple):
    """A continuation without special tokens, and whether an end token ended it."""

    text: str
    complete: bool


def generate_text(loaded: LoadedModel, encoded: EncodedInputs, new_tokens: int) -> list[str]:
    """Generate the continuation of each prompt as `generate` does."""
    return [generated.text for generated in generate(loaded, encoded, new_tokens)]


@torch.no_grad()
def generate(loaded: LoadedModel, encoded: EncodedInputs, new_tokens: int) -> list[GeneratedText]:
    """Generate the continuation of each prompt greedily, until the end token.

    Args:
        loaded: The model.
        encoded: The prompts, padded on the left.
        new_tokens: Maximum number of tokens to generate.
    """
    model, tokenizer = loaded.model, tokenizer_of(loaded.processor)
    special = special_tokens(model, tokenizer)
    greedy = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, **special)
    tokens = generate_tokens(model, _model_inputs(loaded, encoded), greedy)
    generated = tokens[:, encoded.inputs_of(loaded)["input_ids"].shape[1] :]
    end = special["eos_token_id"]
    ends = set(end) if isinstance(end, (list, tuple)) else {end}
    texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
    return [
        GeneratedText(text.strip(), not ends.isdisjoint(row))
        for text, row in zip(texts, generated.tolist(), strict=True)
    ]


def _model_inputs(loaded: LoadedModel, encoded: EncodedInputs) -> dict[str, Any]:
    """Return keyword arguments of the model, with the projected features of the images."""
    inputs = dict(encoded.inputs_of(loaded))
    if encoded.vision is not None:
        with loaded.lock:
            features = encoded.vision.image_features(loaded.model)
        output = BaseModelOutputWithPooling(pooler_output=features)
        inputs["mm_encoder_outputs"] = {"image": output}
    return inputs
