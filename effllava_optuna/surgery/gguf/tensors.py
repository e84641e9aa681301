"""Write weights in the types of GGUF."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    import gguf

GgufType = Literal["f32", "f16", "q8_0"]
TYPES: tuple[GgufType, ...] = ("f32", "f16", "q8_0")


def add_weight(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor, kind: GgufType) -> None:
    """Add a tensor to a file: matrices in type ``kind``, anything else in float32.

    A matrix whose rows are not whole blocks of the type is written in float16.

    Args:
        writer: The writer of the file.
        name: Name of the tensor in GGUF.
        weight: The values.
        kind: The type.
    """
    import gguf

    stored = stored_type(weight, kind)
    values = weight.detach().float().cpu().contiguous().numpy()
    writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)


def stored_type(weight: torch.Tensor, kind: GgufType) -> Any:
    """Return the type in which a tensor is stored, as a member of gguf's enumeration."""
    import gguf

    types = gguf.GGMLQuantizationType
    if weight.dim() < 2:
        return types.F32
    if weight.dim() > 2 and kind != "f32":  # a convolution
        return types.F16
    wanted = types[kind.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if weight.shape[-1] % block == 0 else types.F16


def file_type(kind: GgufType) -> int:
    """Return the number that names a type in the description of a file."""
    import gguf

    names = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
    return int(gguf.LlamaFileType[names[kind]])


def rounded(weight: torch.Tensor, kind: GgufType) -> torch.Tensor:
    """Return the values that a file has of a weight, in float32 on the CPU."""
    import gguf

    stored = stored_type(weight, kind)
    values = weight.detach().float().cpu().contiguous().numpy()
    quantised = gguf.quants.quantize(values, stored)
    return torch.from_numpy(gguf.quants.dequantize(quantised, stored).reshape(values.shape))
