"""Write the decoder of a model as GGUF."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.errors import ExportError
from effllava_optuna.surgery.gguf.tensors import add_weight
from effllava_optuna.surgery.structure.inspection import language_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    import gguf

    from effllava_optuna.surgery.gguf.architectures import Architecture
    from effllava_optuna.surgery.gguf.tensors import GgufType
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

_ROTATED = ("self_attn.q_proj", "self_attn.k_proj")


def add_decoder(
    writer: gguf.GGUFWriter, written: LoadedModel, architecture: Architecture, kind: GgufType
) -> None:
    """Add the sizes and the weights of a decoder to a file.

    Args:
        writer: The writer of the file.
        written: The model; with one width for all blocks unless the architecture has more.
        architecture: The architecture that computes it.
        kind: The type of its matrices.

    Raises:
        ExportError: It has weights or settings that the architecture does not have.
    """
    decoder: Any = language_model(written.model)
    _add_sizes(writer, decoder, architecture)
    _add_rotation(writer, decoder.config, written.source)
    _add_settings(writer, decoder, architecture, written.source)
    for name, weight in _named_weights(written, architecture):
        add_weight(writer, name, weight, kind)


def _add_sizes(writer: gguf.GGUFWriter, decoder: Any, architecture: Architecture) -> None:
    config, blocks = decoder.config, decoder.layers
    size = blocks[0].self_attn.head_dim
    columns = {
        writer.add_feed_forward_length: [block.mlp.down_proj.in_features for block in blocks],
        writer.add_head_count: [b.self_attn.q_proj.out_features // size for b in blocks],
        writer.add_head_count_kv: [b.self_attn.k_proj.out_features // size for b in blocks],
    }
    for add, counts in columns.items():
        add(counts if architecture.by_block else counts[0])
    writer.add_block_count(len(blocks))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(decoder.embed_tokens.num_embeddings)


def _add_rotation(writer: gguf.GGUFWriter, config: Any, source: str) -> None:
    """Add the settings of the rotary embeddings.

    Raises:
        ExportError: They are scaled in a way that is not written here.
    """
    settings = config.rope_parameters
    windows = settings.get("sliding_attention")  # those of blocks with a sliding window
    settings = settings.get("full_attention", settings)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    scaling, base = settings.get("rope_type", "default"), settings["rope_theta"]
    plain = windows is None or windows.get("rope_type", "default") == "default"
    if settings.get("partial_rotary_factor", 1.0) != 1.0 or scaling not in _SCALINGS or not plain:
        raise ExportError(
            f"{source} rotates embeddings by {config.rope_parameters}, which cannot be written as "
            "GGUF.",
            hint="Use another format.",
        )
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(base)
    if windows is not None:
        writer.add_rope_freq_base_swa(windows["rope_theta"])
    if scaling == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(settings["factor"])
    elif scaling == "llama3":
        add_weight(writer, "rope_freqs.weight", _llama3_divisors(settings, size), "f32")


_SCALINGS = ("default", "linear", "llama3")


def _llama3_divisors(settings: Any, size: int) -> torch.Tensor:
    """Return what Llama 3 divides the frequencies of a head by, shape ``(size / 2,)``."""
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    lengths = 2 * math.pi * torch.pow(settings["rope_theta"], exponents)
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    context: int = settings["original_max_position_embeddings"]
    turns = context / lengths
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    divisors: torch.Tensor = 1 / ((1 - smooth) / settings["factor"] + smooth)
    return divisors.float()


def _add_settings(
    writer: gguf.GGUFWriter, decoder: Any, architecture: Architecture, source: str
) -> None:
    """Add what only some families have.

    Raises:
        ExportError: Attention is scaled otherwise than by the size of a head.
    """
    config, size = decoder.config, decoder.layers[0].self_attn.head_dim
    scalar = getattr(config, "query_pre_attn_scalar", size)
    if scalar != size:
        raise ExportError(
            f"{source} scales attention by query_pre_attn_scalar = {scalar}, and llama.cpp's "
            f"{architecture.name} by the size of a head, {size}.",
            hint="Use another format.",
        )
    if architecture.period:
        writer.add_sliding_window(config.sliding_window)
    for field, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if getattr(config, field, None):
            add(getattr(config, field))


def _named_weights(
    written: LoadedModel, architecture: Architecture
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of a decoder under the names of GGUF.

    Raises:
        ExportError: The architecture has no place for one.
    """
    import gguf

    decoder: Any = language_model(written.model)
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(number, len(decoder.layers))
    size = decoder.layers[0].self_attn.head_dim
    weights = {f"model.{name}": weight for name, weight in decoder.named_parameters()}
    output = written.model.get_output_embeddings()
    if output.weight is not decoder.embed_tokens.weight:
        weights |= {f"lm_head.{name}": weight for name, weight in output.named_parameters()}
    for name, weight in weights.items():
        path, _, suffix = name.rpartition(".")
        mapped = names.get_name(path)
        if mapped is None:
            raise ExportError(
                f"{written.source} has {name}, which llama.cpp's {architecture.name} does not "
                "have.",
                hint="Use another format.",
            )
        values = weight.detach()
        if architecture.interleaved and path.endswith(_ROTATED):
            values = _interleaved(values, size)
        if architecture.norm_offset and path.endswith("norm"):
            values = values.float() + architecture.norm_offset
        yield f"{mapped}.{suffix}", values


def _interleaved(weight: torch.Tensor, size: int) -> torch.Tensor:
    """Interleave the rows of the two halves of each head."""
    halves = weight.reshape(-1, 2, size // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)
