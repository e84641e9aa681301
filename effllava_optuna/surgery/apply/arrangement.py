"""Permute the units of a model into the order of a ranking, and back."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn

from effllava_optuna.errors import ModelError
from effllava_optuna.surgery.structure.component_handle import element_indices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.policy import Ranking
    from effllava_optuna.surgery.structure.component_handle import ComponentHandle
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel


@dataclass
class _Arrangement:
    """The ranking into which units are permuted, and the number of `with` blocks that use it."""

    ranking: Ranking
    users: int = 0


# By model, because several `LoadedModel` may share the permuted weights.
_ARRANGEMENTS: WeakKeyDictionary[nn.Module, _Arrangement] = WeakKeyDictionary()


def current_ranking(loaded: LoadedModel) -> Ranking | None:
    """Return the ranking into which the units are permuted; None: their original order."""
    arrangement = _ARRANGEMENTS.get(loaded.model)
    return None if arrangement is None else arrangement.ranking


def ranked_units(ranking: Ranking, handle: ComponentHandle) -> torch.Tensor:
    """Return the units of a component in the order of ``ranking``: shape ``(width,)``."""
    return torch.from_numpy(ranking.units[handle.component.id].copy())


def is_arranged(loaded: LoadedModel, ranking: Ranking) -> bool:
    """Return whether the units are permuted into the order of ``ranking``.

    Raises:
        ModelError: The ranking does not fit the model, or the model is narrowed or arranged by
            another ranking.
    """
    if ranking.structure != loaded.structure.digest:
        raise ModelError(
            f"The ranking belongs to structure {ranking.structure}, {loaded.source} has "
            f"{loaded.structure.digest}.",
            hint="Rank the units of this model.",
        )
    for handle in loaded.handles:
        component = handle.component
        if len(ranking.units.get(component.id, ())) != component.width:
            raise ModelError(
                f"The ranking does not contain the {component.width} units of {component.id}.",
                hint="Rank the units of this model.",
            )
        if handle.linear(handle.output).weight.shape[1] != component.width * handle.columns:
            raise ModelError(
                f"{loaded.source} is already narrowed.",
                hint="Leave the other `with narrowed(...)` first.",
            )
    current = current_ranking(loaded)
    if current is not None and current.digest != ranking.digest:
        raise ModelError(
            f"{loaded.source} is arranged by ranking {current.digest}, not {ranking.digest}.",
            hint="Leave `with arranged(...)` before using another ranking.",
        )
    return current is not None


@contextmanager
def arranged(loaded: LoadedModel, ranking: Ranking) -> Iterator[LoadedModel]:
    """Permute the units into the order of ``ranking``; on exit, restore every parameter exactly.

    The function of the model does not change, beyond the rounding of reordered sums. The lock is
    held only on entry and on exit: inside, several threads may narrow the model in turn.

    Raises:
        ModelError: The ranking does not fit the model, or the model is narrowed or arranged by
            another ranking.
    """
    with loaded.lock:
        if not is_arranged(loaded, ranking):
            _permute_all(loaded, ranking)
            _ARRANGEMENTS[loaded.model] = _Arrangement(ranking)
        arrangement = _ARRANGEMENTS[loaded.model]
        arrangement.users += 1
    try:
        yield replace(loaded, ranking=ranking)
    finally:
        with loaded.lock:
            arrangement.users -= 1
            if not arrangement.users:
                del _ARRANGEMENTS[loaded.model]
                for handle in loaded.handles:
                    _permute(handle, torch.argsort(ranked_units(ranking, handle)))


def _permute_all(loaded: LoadedModel, ranking: Ranking) -> None:
    """Permute all components; if one fails, restore the others."""
    permuted: list[ComponentHandle] = []
    try:
        for handle in loaded.handles:
            _permute(handle, ranked_units(ranking, handle))
            permuted.append(handle)
    except BaseException:
        for handle in permuted:
            _permute(handle, torch.argsort(ranked_units(ranking, handle)))
        raise


def _permute(handle: ComponentHandle, units: torch.Tensor) -> None:
    """Reorder the units of a component to ``units``, in the memory of its weights."""
    with torch.no_grad():
        for name, unit_rows in handle.inputs.items():
            linear = handle.linear(name)
            rows = unit_rows.indices(units, handle.component.width).to(linear.weight.device)
            linear.weight.copy_(linear.weight[rows])
            if linear.bias is not None:
                linear.bias.copy_(linear.bias[rows])
        output = handle.linear(handle.output)
        columns = element_indices(units, handle.columns).to(output.weight.device)
        output.weight.copy_(output.weight[:, columns])
