"""Write the vision tower and the projector of a LLaVA as the second file of llama.cpp (mmproj).

llama.cpp computes a tower with one number of heads: heads that were removed are written as zeros.
The widths of the MLPs may differ between blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from effllava_optuna.errors import ExportError
from effllava_optuna.surgery.gguf.tensors import add_weight

if TYPE_CHECKING:
    from collections.abc import Iterator

    import gguf

    from effllava_optuna.surgery.gguf.tensors import GgufType
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

# How the features of the patches are selected: CLIP has that of a class embedding before them.
_TOWERS = {"clip_vision_model": "default", "siglip_vision_model": "full"}
_ACTIVATIONS = {"quick_gelu": False, "gelu": True, "gelu_pytorch_tanh": True}
_ROWS = ("q_proj", "k_proj", "v_proj")
_HUB = "vision_tower.vision_model."  # names of the hub, which gguf maps to its own
_SPARE = 32  # channels of zeros


def check_vision(pruned: LoadedModel) -> None:
    """Refuse a model whose tower and projector llama.cpp cannot compute as a LLaVA's.

    Raises:
        ExportError: It cannot, or image tokens are reduced.
    """
    config = pruned.model.config
    tower: Any = getattr(config, "vision_config", None)
    obstacle = ""
    if pruned.visual_tokens is not None:
        obstacle = "reduced image tokens"
    elif config.model_type != "llava":
        obstacle = f"pictures in the manner of {config.model_type!r}"
    elif tower.model_type not in _TOWERS:
        obstacle = f"a vision tower of type {tower.model_type!r}"
    elif tower.hidden_act not in _ACTIVATIONS:
        obstacle = f"the activation {tower.hidden_act!r} in its vision tower"
    elif not isinstance(config.vision_feature_layer, int):
        obstacle = "features of several layers of its vision tower"
    elif config.vision_feature_select_strategy != _TOWERS[tower.model_type]:
        obstacle = f"vision_feature_select_strategy {config.vision_feature_select_strategy!r}"
    if obstacle:
        raise ExportError(
            f"{pruned.source} has {obstacle}, which cannot be written as GGUF.",
            hint="Use another format, or export_gguf(..., language_only=True).",
        )


def add_vision(writer: gguf.GGUFWriter, pruned: LoadedModel, kind: GgufType) -> None:
    """Add tower and projector to a file.

    Args:
        writer: The writer of the file, of architecture ``clip``.
        pruned: A model that `check_vision` does not refuse.
        kind: The type of the matrices.
    """
    config: Any = pruned.model.config.vision_config
    images = pruned.processor.image_processor
    depth = _depth(pruned.model.config)
    writer.add_clip_has_vision_encoder(value=True)
    writer.add_bool("clip.has_llava_projector", val=True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(config.image_size)
    writer.add_vision_patch_size(config.patch_size)
    writer.add_vision_embedding_length(config.hidden_size)
    writer.add_vision_feed_forward_length(config.intermediate_size)
    writer.add_vision_projection_dim(pruned.model.config.get_text_config().hidden_size)
    writer.add_vision_block_count(depth)
    writer.add_vision_head_count(config.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(config.layer_norm_eps)
    writer.add_vision_image_mean(list(images.image_mean))
    writer.add_vision_image_std(list(images.image_std))
    writer.add_vision_use_gelu(_ACTIVATIONS[config.hidden_act])
    writer.add_array("clip.vision.feature_layer", [depth])
    for name, weight in _named_weights(pruned.model, depth):
        add_weight(writer, name, weight, kind)


def _depth(config: Any) -> int:
    """Return the number of blocks of a tower whose output is read."""
    layer: int = config.vision_feature_layer
    return layer if layer >= 0 else config.vision_config.num_hidden_layers + 1 + layer


def _named_weights(model: Any, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, depth)
    tower = model.model.vision_tower
    width = model.config.vision_config.hidden_size
    for name, weight in tower.named_parameters():
        path, _, suffix = name.removeprefix("vision_model.").rpartition(".")
        is_module = names.get_name(f"{_HUB}{path}") is not None
        leaf = path if is_module else f"{path}.{suffix}"  # the class embedding is no module
        mapped = names.get_name(f"{_HUB}{leaf}")
        if mapped is None or leaf == "post_layernorm":  # a block behind the features, or a head
            continue
        values = _padded_heads(path, weight, width)
        yield (f"{mapped}.{suffix}" if is_module else mapped), _distinct(path, values, width)
    projector = model.model.multi_modal_projector
    for number, linear in ((0, projector.linear_1), (2, projector.linear_2)):
        for suffix, values in linear.named_parameters():
            yield f"mm.{number}.{suffix}", values


def _padded_heads(path: str, weight: torch.Tensor, width: int) -> torch.Tensor:
    """Add heads of zeros up to the dense width."""
    if path.endswith(_ROWS):
        missing = width - weight.shape[0]
        return F.pad(weight, (0, 0, 0, missing) if weight.dim() == 2 else (0, missing))
    if path.endswith("out_proj") and weight.dim() == 2:
        return F.pad(weight, (0, width - weight.shape[1]))
    return weight


def _distinct(path: str, weight: torch.Tensor, width: int) -> torch.Tensor:
    """Add channels of zeros to an MLP as wide as its input.

    llama.cpp tells the two matrices of an MLP apart by their sizes, because older files have them
    under each other's names.
    """
    if path.endswith("fc1") and weight.shape[0] == width:
        return F.pad(weight, (0, 0, 0, _SPARE) if weight.dim() == 2 else (0, _SPARE))
    if path.endswith("fc2") and weight.dim() == 2 and weight.shape[1] == width:
        return F.pad(weight, (0, _SPARE))
    return weight
