"""Size of a network: parameters, memory and floating-point operations."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from effllava_optuna.surgery import answer_logits

if TYPE_CHECKING:
    from effllava_optuna.surgery import EncodedInputs, LoadedModel


def parameters(network: LoadedModel) -> int:
    """Count the parameters of the whole model at its current widths."""
    return sum(weight.numel() for weight in network.model.parameters())


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory so far, in MB: of a GPU by torch, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    factor = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor / 1e6


@torch.no_grad()
def flops(network: LoadedModel, seen: EncodedInputs) -> int:
    """Count the floating-point operations of projector and decoder for ``seen``.

    Multiplications and additions count separately; the vision tower is not run.
    """
    with FlopCounterMode(display=False) as counter:
        answer_logits(network, seen)
    return int(counter.get_total_flops())
