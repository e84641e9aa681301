"""Split the components into groups that are ranked and fitted within a limit of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.errors import ModelError
from effllava_optuna.surgery.importance.memory_groups import group_by_memory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery.compensation.fitting import PruningOptions
    from effllava_optuna.surgery.structure.component_handle import ComponentHandle

# Matrices as large as a component's moments that ranking and fitting it takes beside the moments
# of its folds: their sum (two), the damped matrix, its factor, and temporaries of the sums.
_WORKING_MATRICES = 7


def split_by_memory(
    handles: Sequence[ComponentHandle],
    folds: int,
    widths: Mapping[ComponentId, Sequence[int]],
    options: PruningOptions,
) -> list[list[ComponentHandle]]:
    """Split ``handles`` so that the moments, factors and all tables stay within the limit.

    Args:
        handles: The components.
        folds: Number of folds.
        widths: By component, the numbers of units that get a fit.
        options: How the components are ranked and fitted; ``table_gb`` is the limit.

    Raises:
        ModelError: The limit is too low for one component at a time.
    """
    table = options.table_sets * sum(
        _table_bytes(handle, folds, widths[handle.component.id], options) for handle in handles
    )
    moment_bytes = [8 * _moment_numbers(handle, options) for handle in handles]
    largest = max(moment_bytes)
    fold_matrices = 2 * folds if options.tokens == "gradient" else folds
    available = options.table_gb * 1e9 - table - _WORKING_MATRICES * largest
    if fold_matrices * largest > available:
        needed = table + (_WORKING_MATRICES + fold_matrices) * largest
        raise ModelError(
            f"The compensation tables take {table / 1e9:.3g} GB, and {needed / 1e9:.3g} GB while "
            f"they are computed; pruning.table_gb allows {options.table_gb:g}.",
            hint="Use a larger pruning.table_gb, or fewer pruning.width_ratios or pruning.folds.",
        )
    return group_by_memory(handles, [fold_matrices * size for size in moment_bytes], available)


def _table_bytes(
    handle: ComponentHandle, folds: int, widths: Sequence[int], options: PruningOptions
) -> int:
    """Count the bytes of the fits of one component, on all folds and without each."""
    output = handle.linear(handle.output)
    narrow = [width * handle.columns for width in widths if width < handle.component.width]
    columns = {"none": 0, "bias": len(narrow), "least-squares": sum(narrow)}[options.compensation]
    return (folds + 1) * output.out_features * columns * output.weight.element_size()


def _moment_numbers(handle: ComponentHandle, options: PruningOptions) -> int:
    """Count the numbers in one component's moments, or in a fit if those are more."""
    columns = handle.columns * handle.component.width
    if not options.full_moments:
        return columns
    return columns * max(columns, handle.linear(handle.output).out_features)
