"""Pruned models to export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from effllava_optuna import sliced
from effllava_optuna.policy import Policy, Ranking
from effllava_optuna.surgery import FittedOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Batch


def slice_reversed(
    dense: LoadedModel, widths: Sequence[int], *, compensated: bool = False
) -> LoadedModel:
    """Slice a model, keeping the last units of each component.

    Args:
        dense: The model.
        widths: Units kept, by component.
        compensated: Replace one output matrix, and give another one a bias.
    """
    scores = {c.id: torch.arange(c.width).numpy() * 1.0 for c in dense.structure.components}
    ranking = Ranking.from_scores(dense.structure, "reversed", scores)
    compensation = {}
    if compensated:
        components = [component.id for component in dense.structure.components]
        compensation = {
            (components[1], 7): FittedOutput(torch.full((36, 7), 0.1)),
            (components[5], 16): FittedOutput(bias=torch.linspace(-1, 1, 36)),
        }
    return sliced(dense, Policy.of(dense.structure, widths), ranking, compensation)


def prune(dense: LoadedModel) -> LoadedModel:
    """Slice to another number of heads in each block, with a compensation."""
    return slice_reversed(dense, [1, 7, 3, 24, 2, 16], compensated=True)


def state_of(loaded: LoadedModel) -> dict[str, object]:
    """Copy everything that a change of a model could change, to compare it with a later state."""
    return {path: _copied(vars(module), ()) for path, module in loaded.model.named_modules()}


def _copied(value: object, above: tuple[int, ...]) -> object:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.requires_grad, value.data_ptr(), value.tolist()
    if isinstance(value, torch.nn.Module) or id(value) in above:
        return id(value)
    above = (*above, id(value))
    if isinstance(value, dict):
        return [(repr(key), _copied(inner, above)) for key, inner in value.items()]
    if isinstance(value, (list, tuple, set)):
        return type(value), [_copied(inner, above) for inner in value]
    if type(value).__module__.startswith("transformers."):
        return id(value), _copied(vars(value), above)
    return type(value), repr(value)


def last_logits(loaded: LoadedModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = loaded.model(**batch.inputs).logits[:, -1]
    return logits
