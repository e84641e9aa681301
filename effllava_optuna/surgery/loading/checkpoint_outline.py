"""Sizes of a checkpoint, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.policy import Kind
from effllava_optuna.surgery.loading.loader import load_without_weights
from effllava_optuna.surgery.structure.inspection import inspect_model, language_model
from effllava_optuna.surgery.structure.prunable_parts import LANGUAGE

if TYPE_CHECKING:
    from pathlib import Path

    from effllava_optuna.surgery.structure.prunable_parts import PrunableParts

_IMAGE_TOKENS = 450  # if the configuration does not have the number


@dataclass(frozen=True, slots=True)
class CheckpointOutline:
    """Sizes of a checkpoint whose weights are not loaded.

    Attributes:
        parts: The prunable parts.
        takes_images: Whether it is a vision-language model.
        parameters: Parameters of the whole model.
        decoder_layers: Blocks of the decoder.
        hidden_size: Width of the decoder's hidden states.
        mlp_width: Hidden channels of the widest decoder MLP.
        group_ratio: Key/value heads as a share of the query heads.
        vision_parameters: Parameters outside the decoder and the vocabulary.
        output_parameters: Parameters of the layer that returns logits.
        image_patches: Patches per image in the vision tower.
        image_tokens: Tokens per image in the decoder.
    """

    parts: PrunableParts
    takes_images: bool
    parameters: int
    decoder_layers: int
    hidden_size: int
    mlp_width: int
    group_ratio: float
    vision_parameters: int
    output_parameters: int
    image_patches: int
    image_tokens: int


def outline_checkpoint(path_or_id: str | Path) -> CheckpointOutline:
    """Return the sizes of a checkpoint without reading its weights.

    Raises:
        ModelError: There is no such checkpoint, or it has no prunable parts.
    """
    model, takes_images = load_without_weights(path_or_id)
    parts = inspect_model(model)
    decoder = language_model(model)
    config: Any = decoder.config
    components = [c for c in parts.structure.components if c.tower == LANGUAGE]
    mlp_width = max((c.width for c in components if c.kind is Kind.MLP), default=0)
    heads = int(getattr(config, "num_attention_heads", 1) or 1)
    groups = int(getattr(config, "num_key_value_heads", heads) or heads)
    output_embeddings = model.get_output_embeddings()
    vocabulary = 0 if output_embeddings is None else output_embeddings.weight.numel()
    parameters = model.num_parameters()
    decoder_parameters = sum(weight.numel() for weight in decoder.parameters())
    image_patches, image_tokens = _image_sizes(model.config) if takes_images else (0, 0)
    return CheckpointOutline(
        parts=parts,
        takes_images=takes_images,
        parameters=parameters,
        decoder_layers=1 + max(component.layer for component in components),
        hidden_size=int(config.hidden_size),
        mlp_width=mlp_width or 4 * int(config.hidden_size),
        group_ratio=groups / heads,
        vision_parameters=max(0, parameters - decoder_parameters - vocabulary),
        output_parameters=vocabulary,
        image_patches=image_patches,
        image_tokens=image_tokens,
    )


def _image_sizes(config: Any) -> tuple[int, int]:
    """Return the patches per image in the vision tower, and the tokens in the decoder."""
    vision = getattr(config, "vision_config", None)
    side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    patches = 4 * _IMAGE_TOKENS
    if isinstance(side, int) and isinstance(patch, int) and patch > 0:
        patches = (side // patch) ** 2
    tokens = getattr(config, "image_seq_length", None)
    return patches, tokens if isinstance(tokens, int) else min(patches, _IMAGE_TOKENS)
