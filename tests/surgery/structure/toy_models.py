"""Minimal modules with the structure of a vision-language model."""

from __future__ import annotations

from typing import Any

from torch import nn


class Attention(nn.Module):
    """The attention of a block, with 4 query heads of size 2 in two groups."""

    head_dim = 2

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        for name, size in ({"q_proj": 8, "k_proj": 4, "v_proj": 4} | sizes).items():
            setattr(self, name, nn.Linear(6, size))
        self.o_proj = nn.Linear(8, 6)


def attention_with(**attributes: Any) -> nn.Module:
    attention = Attention()
    for name, value in attributes.items():
        setattr(attention, name, value)
    return attention


class Mlp(nn.Module):
    def __init__(self, gate: int = 5, up: int = 5) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(6, gate), nn.Linear(6, up)
        self.down_proj = nn.Linear(5, 6)


class Decoder(nn.Module):
    def __init__(self, *blocks: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(*block) for block in blocks)


class VisionLanguageModel(nn.Module):
    """A decoder with a connector, or with the given parts, beside it."""

    def __init__(self, decoder: nn.Module, **parts: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        for name, part in (parts or {"connector": nn.Linear(3, 6)}).items():
            setattr(self, name, part)

    def get_decoder(self) -> nn.Module:
        return self.decoder
