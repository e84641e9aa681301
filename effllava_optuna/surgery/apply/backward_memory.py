"""How many samples a backward pass can read at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from effllava_optuna.surgery.structure.inspection import language_model
from effllava_optuna.surgery.structure.prunable_parts import LANGUAGE, PROJECTOR

if TYPE_CHECKING:
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

_CPU_GB, _GPU_GB = 1.0, 8.0  # also in the estimated memory of a study


def samples_per_backward(loaded: LoadedModel, tokens: int) -> int:
    """Return how many samples a backward pass can read at once, at least 1.

    What the forward pass keeps for it may take 1 GB on a CPU, and 8 GB on a GPU. With frozen
    weights, linear layers keep nothing; what norms, activation functions and attention keep is
    about twice what linear layers read and write.

    Args:
        loaded: A model, or a network of it.
        tokens: Tokens of each sample, padding included.
    """
    model = loaded.model
    below_projector = not set(loaded.towers) <= {LANGUAGE, PROJECTOR}
    numbers = 2 * sum(
        layer.in_features + layer.out_features
        for layer in (model if below_projector else language_model(model)).modules()
        if isinstance(layer, nn.Linear) and layer is not model.get_output_embeddings()
    )
    limit = _CPU_GB if loaded.device.type == "cpu" else _GPU_GB
    return max(1, int(limit * 1e9 / (model.dtype.itemsize * max(1, numbers) * tokens)))
