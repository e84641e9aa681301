"""Understand the size of a model by its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.policy import Kind
from effllava_optuna.surgery.discover import LANGUAGE, discover, language_model
from effllava_optuna.surgery.load import empty

if TYPE_CHECKING:
    from pathlib import Path

    from effllava_optuna.surgery.discover import Discovery

_TOKENS = 450  # of a picture, where the configuration does not say


@dataclass(frozen=True, slots=True)
class Sketch:
    """A model without weights.

    Attributes:
        parts: What of it could be cut.
        sees: Whether it takes pictures.
        parameters: Of the whole.
        layers: Blocks of the decoder.
        hidden: Their width.
        inner: Of their MLPs.
        groups: Share of query heads that there are key/value heads.
        vision: Parameters beside decoder and vocabulary.
        patches: That a tower sees of a picture.
        picture: Tokens that a picture becomes.
    """

    parts: Discovery
    sees: bool
    parameters: int
    layers: int
    hidden: int
    inner: int
    groups: float
    vision: int
    patches: int
    picture: int


def sketch(path_or_id: str | Path) -> Sketch:
    """Describe a checkpoint of which no weights are read.

    Raises:
        ModelError: There is no such checkpoint, or its structure is not understood.
    """
    model, sees = empty(path_or_id)
    parts = discover(model)
    decoder = language_model(model)
    config: Any = decoder.config
    mine = [site for site in parts.anatomy.sites if site.tower == LANGUAGE]
    inner = max((site.width for site in mine if site.kind is Kind.MLP), default=0)
    heads = int(getattr(config, "num_attention_heads", 1) or 1)
    groups = int(getattr(config, "num_key_value_heads", heads) or heads)
    head = model.get_output_embeddings()
    words = 0 if head is None else head.weight.numel()
    whole = model.num_parameters()
    patches, picture = _picture(model.config)
    return Sketch(
        parts,
        sees,
        parameters=whole,
        layers=1 + max(site.layer for site in mine),
        hidden=int(config.hidden_size),
        inner=inner or 4 * int(config.hidden_size),
        groups=groups / heads,
        vision=max(0, whole - sum(weight.numel() for weight in decoder.parameters()) - words),
        patches=patches,
        picture=picture,
    )


def _picture(config: Any) -> tuple[int, int]:
    """Give how many patches a tower sees, and how many tokens the decoder gets."""
    vision = getattr(config, "vision_config", None)
    side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    patches = 4 * _TOKENS
    if isinstance(side, int) and isinstance(patch, int) and patch > 0:
        patches = (side // patch) ** 2
    told = getattr(config, "image_seq_length", None)
    return patches, told if isinstance(told, int) else min(patches, _TOKENS)
