"""How large a network is, and how much it computes."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from effllava_optuna.surgery import answer

if TYPE_CHECKING:
    from effllava_optuna.surgery import Loaded, Seen


def parameters(network: Loaded) -> int:
    """Count the parameters of the whole model, at its present widths."""
    return sum(weight.numel() for weight in network.model.parameters())


def peak_memory_mb(device: torch.device) -> float:
    """Give the most memory that was held so far: of a GPU by torch, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@torch.no_grad()
def flops(network: Loaded, seen: Seen) -> int:
    """Count the floating-point operations of projector and decoder for ``seen``.

    Multiplications and additions count separately; the vision tower is not run.
    """
    with FlopCounterMode(display=False) as counter:
        answer(network, seen)
    return int(counter.get_total_flops())
