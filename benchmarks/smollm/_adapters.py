"""Low-rank adapters of the language model (Hu et al. 2021): trained beside it, then merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_RANK, _ALPHA = 8, 16
_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_adapters(language_model: nn.Module) -> list[nn.Parameter]:
    """Add an adapter to every linear layer; return their weights, which alone are trained."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=_RANK, lora_alpha=_ALPHA, target_modules=[*_LAYERS])
    inject_adapter_in_model(config, language_model)
    adapters = [weight for name, weight in language_model.named_parameters() if ".lora_" in name]
    for weight in adapters:
        weight.requires_grad = True
    return adapters


def adapter_tensors(language_model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of the adapters, by layer and factor."""
    return {
        name.replace(".lora_", ".").removesuffix(".default.weight"): weight
        for name, weight in language_model.state_dict().items()
        if ".lora_" in name
    }


@torch.no_grad()
def merge_adapters(language_model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Add the product of each pair of factors to the weight of its layer.

    Args:
        language_model: The pretrained model, without adapters; it is changed.
        tensors: What `adapter_tensors` has returned.
    """
    for name, second in tensors.items():
        layer, _, factor = name.rpartition(".")
        if factor == "B":
            first = tensors[f"{layer}.A"]
            product = second.float() @ first.float()
            weight = language_model.get_parameter(f"{layer}.weight")
            weight.add_(product.to(weight.dtype), alpha=_ALPHA / _RANK)
