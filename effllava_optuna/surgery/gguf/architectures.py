"""Which architecture of llama.cpp computes what a decoder of transformers computes.

``deci`` is the only one of Llama's kind that reads the number of heads and the width of the MLP
of each block. Decoders that it does not compute are padded to one width, and written under the
architecture of their family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture of llama.cpp.

    Attributes:
        name: Its name.
        by_block: Whether heads and widths may differ between blocks.
        interleaved: Whether it rotates adjacent rows of a head together, and not those of the
            first half with those of the second one.
        norm_offset: What transformers adds to the weights of the normalisations.
        period: If blocks have sliding windows: the last one of so many blocks has none.
    """

    name: str
    by_block: bool = False
    interleaved: bool = False
    norm_offset: float = 0.0
    period: int = 0


_DECI = Architecture("deci", by_block=True, interleaved=True)
_BY_MODEL_TYPE: Mapping[str, Architecture] = {
    "llama": _DECI,
    "mistral": _DECI,
    "qwen2": _DECI,
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", norm_offset=1.0),
    "gemma2": Architecture("gemma2", norm_offset=1.0, period=2),
    "gemma3_text": Architecture("gemma3", norm_offset=1.0, period=6),
}


def architecture_of(config: Any, source: str) -> Architecture:
    """Return the architecture that computes a decoder.

    Args:
        config: The configuration of the decoder.
        source: Name of the model in messages.

    Raises:
        ExportError: None does.
    """
    kind = getattr(config, "model_type", "")
    if kind not in _BY_MODEL_TYPE:
        raise ExportError(
            f"{source} has a decoder of type {kind!r}, which cannot be written as GGUF.",
            hint=f"Those of {', '.join(_BY_MODEL_TYPE)} can; use another format.",
        )
    architecture = _BY_MODEL_TYPE[kind]
    windows = _windows(config)
    shorter = any(windows) and config.sliding_window < config.max_position_embeddings
    if architecture.by_block and shorter:
        raise ExportError(
            f"{source} has a sliding window, which llama.cpp's {architecture.name} does not have.",
            hint="Use another format.",
        )
    period = architecture.period
    numbers = range(config.num_hidden_layers)
    if period and windows != [number % period < period - 1 for number in numbers]:
        raise ExportError(
            f"{source} lost blocks, and llama.cpp's {architecture.name} has sliding windows in "
            f"all blocks but every {period}th.",
            hint="Use another format, or a policy that keeps all blocks.",
        )
    return architecture


def _windows(config: Any) -> list[bool]:
    """Return whether each block has a sliding window."""
    if getattr(config, "sliding_window", None) is None:
        return []
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    return [kind == "sliding_attention" for kind in kinds]
