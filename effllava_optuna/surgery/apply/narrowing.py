"""Run a policy on temporarily smaller weights.

Units are permuted into ranking order first, which does not change the function of the model;
then the weights of every policy are prefixes, and views, of the same memory.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Policy
from effllava_optuna.surgery.apply.arrangement import arranged, is_arranged
from effllava_optuna.surgery.apply.reduced_model import with_tokens_of
from effllava_optuna.surgery.structure.block_removal import blocks_removed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.policy import Ranking
    from effllava_optuna.surgery.apply.compensation_table import CompensationTable, FittedOutput
    from effllava_optuna.surgery.structure.component_handle import ComponentHandle
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel


@contextmanager
def narrowed(
    loaded: LoadedModel,
    policy: Policy,
    ranking: Ranking,
    compensation: CompensationTable | None = None,
) -> Iterator[LoadedModel]:
    """Reduce the model to the units that ``policy`` keeps, for the duration of the ``with``.

    Args:
        loaded: The model; inside `arranged` by the same ranking, entering creates views only.
        policy: Number of units kept at each component. The dense policy changes nothing.
        ranking: Order of the units; the first are kept.
        compensation: Output matrices and biases for the kept units. Components that are not in
            it keep their original columns.

    Raises:
        PolicyError: The policy belongs to another structure.
        ModelError: The ranking belongs to another structure, an output matrix has the wrong
            shape, or the model is already narrowed.
    """
    policy.check(loaded.structure)
    with ExitStack() as undo:
        undo.enter_context(loaded.lock)
        if not is_arranged(loaded, ranking) and policy == Policy.dense(loaded.structure):
            yield loaded
            return
        loaded = undo.enter_context(with_tokens_of(loaded, policy))
        network = undo.enter_context(arranged(loaded, ranking))
        kept = policy.active_widths
        removed = [block for block in loaded.blocks if not kept[block.component.id]]
        undo.enter_context(blocks_removed(removed))
        changes = _EntryChanges()
        undo.callback(changes.undo)
        for handle in network.handles:
            component_id = handle.component.id
            count = kept[component_id]
            if count not in (0, handle.component.width):
                fitted = (compensation or {}).get((component_id, count))
                _narrow(handle, count, fitted, changes)
        yield network


class _EntryChanges:
    """Temporary changes of dictionary entries, such as those in which a module keeps its weights.

    Setting an attribute of a module does the same, but takes many times longer.
    """

    def __init__(self) -> None:
        self._before: list[tuple[dict[str, Any], str, Any]] = []

    def set(self, entries: dict[str, Any], name: str, value: Any) -> None:
        """Replace the value of an existing entry."""
        self._before.append((entries, name, entries[name]))
        entries[name] = value

    def set_parameter(self, entries: dict[str, Any], name: str, value: torch.Tensor) -> None:
        """Replace an existing parameter by a frozen one."""
        self.set(entries, name, nn.Parameter(value, requires_grad=False))

    def undo(self) -> None:
        """Restore all entries, the last change first."""
        while self._before:
            entries, name, value = self._before.pop()
            entries[name] = value


def _narrow(
    handle: ComponentHandle, count: int, fitted: FittedOutput | None, changes: _EntryChanges
) -> None:
    """Reduce one component to its first ``count`` units."""
    _check_shapes(handle, count, fitted)
    for name, unit_rows in handle.inputs.items():
        # Rows of matrices that are stacked in one are copied; all others are a view.
        rows = (
            slice(unit_rows.per_unit * count)
            if len(unit_rows.parts) == 1
            else unit_rows.indices(torch.arange(count), handle.component.width)
        )
        entries = handle.linear(name)._parameters
        for part in ("weight", "bias"):
            dense = entries[part]
            if dense is not None:
                changes.set_parameter(entries, part, dense[rows])
    output = handle.linear(handle.output)
    entries, weight = output._parameters, output.weight
    if fitted is None or fitted.weight is None:
        changes.set_parameter(entries, "weight", weight[:, : handle.columns * count])
    else:
        changes.set_parameter(entries, "weight", fitted.weight.to(weight.device, weight.dtype))
    if fitted is not None and fitted.bias is not None:  # the dense layer may have none
        changes.set_parameter(entries, "bias", fitted.bias.to(weight.device, weight.dtype))
    for name, per_unit in handle.counts.items():
        changes.set(vars(handle.module), name, per_unit * count)


def _check_shapes(handle: ComponentHandle, count: int, fitted: FittedOutput | None) -> None:
    """Check that the shapes of a compensation fit the component."""
    if fitted is None:
        return
    out = handle.linear(handle.output).out_features
    for part, shape in ((fitted.weight, (out, handle.columns * count)), (fitted.bias, (out,))):
        if part is not None and part.shape != shape:
            raise ModelError(
                f"The compensation of {handle.component.id} for {count} units has shape "
                f"{tuple(part.shape)} instead of {shape}.",
                hint="Fit the output matrices of this model again.",
            )
