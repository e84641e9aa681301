"""Read the number of tokens that a model supports from its configuration."""

from __future__ import annotations

from typing import Any

_LENGTHS = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "max_seq_length",
            "model_max_length")  # fmt: skip
_SCALES_ALL = ("linear", "dynamic", "yarn")  # rotary embeddings whose factor is of that length


def context_length(config: Any) -> int | None:
    """Return the largest number of tokens of a prompt with its answer; None: any number.

    Scaled rotary embeddings extend the length that a configuration has; some configurations have
    the extended length already. The longer one is returned: no prompt that fits is refused.
    """
    text = config.get_text_config()
    if getattr(text, "alibi", False):
        return None
    lengths = [getattr(text, name, None) for name in _LENGTHS]
    known = [length for length in lengths if type(length) is int and length > 0]
    if not known:
        return None
    length = max(known)
    rope = getattr(text, "rope_parameters", None) or {}
    # Some decoders have one table for each kind of block.
    tables = [rope, *(table for table in rope.values() if isinstance(table, dict))]
    return max(_extended(length, table) for table in tables)


def _extended(length: int, rope: dict[str, Any]) -> int:
    """Return the length that scaled rotary embeddings extend a context to."""
    factor = rope.get("factor")
    if not isinstance(factor, (int, float)) or factor <= 1:
        return length
    original = rope.get("original_max_position_embeddings")
    if type(original) is int:
        return max(length, int(original * factor))
    return int(length * factor) if rope.get("rope_type") in _SCALES_ALL else length
