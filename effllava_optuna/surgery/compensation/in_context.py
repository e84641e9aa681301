"""Fit the compensation tables again, in the context of one policy.

The tables of `rank_and_compensate` use the inputs x that each component has in the dense model. In
the network of a policy the layers before it are pruned, and its inputs are x'. Týr-the-Pruner
(arXiv 2503.09657) fits again on the pruned model between rounds of its search. Here the tables of
all widths are fitted again, so that they serve the policies near the one they were fitted for.
With W the original matrix, the fit for the first k columns is

    W_k = argmin E[w ||W (x + x') / 2 - W_k x'_k||^2].

The output that the dense model has, W x, asks a component to undo the errors of all layers before
it, and overfits a few dozen samples; W x' accepts these errors. Halfway has the lowest loss.

Components are fitted in forward order: x' contains the new fits of the layers before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Policy
from effllava_optuna.surgery.apply.arrangement import arranged
from effllava_optuna.surgery.apply.compensation_table import FittedOutput
from effllava_optuna.surgery.apply.weight_state import policy_network
from effllava_optuna.surgery.compensation.least_squares import cholesky_factor, fit_to_target
from effllava_optuna.surgery.compensation.memory_limit import split_by_memory
from effllava_optuna.surgery.compensation.resumed_runs import ResumedRuns
from effllava_optuna.surgery.compensation.sequential import DAMPING
from effllava_optuna.surgery.importance.moments import joint_weights, ridge_penalty
from effllava_optuna.surgery.importance.unit_statistics import weigh_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery.apply.compensation_table import CompensationTable
    from effllava_optuna.surgery.apply.weight_state import WeightState
    from effllava_optuna.surgery.compensation.fitting import PruningOptions
    from effllava_optuna.surgery.importance.calibration_batch import CalibrationBatch
    from effllava_optuna.surgery.importance.moments import Moments, TokenWeights
    from effllava_optuna.surgery.structure.component_handle import ComponentHandle
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel


@dataclass(frozen=True)
class ContextOptions:
    """How tables are fitted in context.

    Attributes:
        pruning: The options that the existing tables were fitted with.
        damping: By component, the damping of `SequentialOptions`.
        weights: What `weigh_tokens` returns for the samples, for several contexts; None: it is
            called.
    """

    pruning: PruningOptions
    damping: Mapping[ComponentId, float]
    weights: Sequence[Mapping[ComponentId, TokenWeights]] | None = None


def compensate_in_context(
    loaded: LoadedModel,
    weight_state: WeightState,
    policy: Policy,
    folds: Sequence[Sequence[CalibrationBatch]],
    options: ContextOptions,
    progress: Callable[[float], None] | None = None,
) -> tuple[CompensationTable, ...]:
    """Fit the tables of a weight state again: on all folds, and without each fold in turn.

    The network that provides the inputs of a fit has the tables and the projector of that fit, so
    that no fit depends on the fold that it leaves out. Token weights are those of the dense model.
    A component that does not run in the network of ``policy`` keeps its tables.

    Args:
        loaded: The model.
        weight_state: The ranking, the tables that are replaced, and the projectors.
        policy: The context: units kept at each component.
        folds: Calibration samples.
        options: Token weights, damping and limit of memory.
        progress: Called with the finished fraction.

    Returns:
        A table for each fit, with the widths of the existing ones.

    Raises:
        PolicyError: The policy belongs to another structure.
        ModelError: The weight state has no tables, ``options.pruning.table_gb`` is too small, or
            moments cannot be factored.
    """
    policy.check(loaded.structure)
    tables = [dict(table) for table in weight_state.compensations if table is not None]
    if len(tables) <= len(folds):
        raise ModelError(
            "The weight state has no compensation tables.",
            hint="Fit them first, with compensation='least-squares'.",
        )
    state = replace(weight_state, compensations=tuple(tables))  # sees the new fits
    widths = _widths_of(tables[0], loaded.handles)
    ids = (component.id for component in loaded.structure.components)
    kept = dict(zip(ids, policy.widths, strict=True))
    # Components without an output matrix, such as whole blocks, are pruned from the beginning.
    pruned = {component: count for component, count in kept.items() if component not in widths}
    batches = [batch for fold in folds for batch in fold]
    fold_of = [number for number, fold in enumerate(folds, start=1) for _ in fold]
    with arranged(loaded, weight_state.ranking) as ready:
        runs = ResumedRuns(ready, batches)
        groups = split_by_memory(ready.handles, len(folds), widths, options.pruning)
        weights = options.weights or weigh_tokens(ready, groups, batches, options.pruning.tokens)
        for done, handle in enumerate(ready.handles, start=1):
            component = handle.component.id
            partial = Policy.of(ready.structure, pruned)
            # A component of a removed block does not run.
            fits = enumerate(tables) if partial.active_widths[component] else ()
            for fit, table in fits:
                own = {
                    number: tokens[component]
                    for number, (fold, tokens) in enumerate(zip(fold_of, weights, strict=True))
                    if fold != fit and component in tokens
                }
                network = _Context(ready, state, partial, fit)
                moments = network.moments(handle, runs, own)
                if moments is not None:
                    damping = options.damping.get(component, DAMPING)
                    fitted = _fit(handle, *moments, widths[component], damping)
                    table.update({(component, count): fitted[count] for count in fitted})
            pruned[component] = kept[component]
            if progress is not None:
                progress(done / len(ready.handles))
    return tuple(tables)


def _widths_of(
    table: CompensationTable, handles: Iterable[ComponentHandle]
) -> dict[ComponentId, list[int]]:
    """Return the widths of each component that a table has fits for."""
    widths: dict[ComponentId, list[int]] = {handle.component.id: [] for handle in handles}
    for component, count in table:
        widths[component].append(count)
    return widths


@dataclass(frozen=True)
class _Context:
    """The dense model, and the network in which the layers before a component are pruned."""

    ready: LoadedModel
    weight_state: WeightState
    partial: Policy
    fit: int

    def moments(
        self, handle: ComponentHandle, runs: ResumedRuns, weights: Mapping[int, TokenWeights]
    ) -> tuple[Moments, Moments] | None:
        """Return the moments of the inputs, and those of the wanted outputs with the inputs.

        None if no batch runs the component in the network.
        """
        weight = handle.linear(handle.output).weight.detach().double()
        total: tuple[Moments, Moments] | None = None
        joint = joint_weights([*weights.values()])
        for number, tokens in zip(weights, joint, strict=True):
            x = runs.dense(handle, number)
            with policy_network(self.ready, self.weight_state, self.partial, self.fit) as network:
                pruned_x = runs.pruned(network, handle, number, self.fit)
            if x is None or pruned_x is None:
                continue
            wanted = (x + pruned_x) / 2 @ weight.T
            of_inputs, of_outputs = tokens.moments(pruned_x), tokens.moments(wanted, pruned_x)
            if total is not None:
                of_inputs, of_outputs = total[0] + of_inputs, total[1] + of_outputs
            total = of_inputs, of_outputs
        return total


def _fit(
    handle: ComponentHandle,
    of_inputs: Moments,
    of_outputs: Moments,
    widths: Sequence[int],
    damping: float,
) -> dict[int, FittedOutput]:
    """Compute the fits of one component by number of units kept, from the moments above."""
    weight = handle.linear(handle.output).weight.detach()
    matrix, target = of_inputs.matrix, of_outputs.matrix
    penalty = ridge_penalty(matrix.diagonal(), damping)
    matrix.diagonal().add_(penalty)
    target.add_(weight.double(), alpha=penalty)  # pulls towards the original columns
    lower = cholesky_factor(matrix, handle.component.id, damping)
    fits = fit_to_target(target, lower, [count * handle.columns for count in widths])
    return {
        columns // handle.columns: FittedOutput(fit.to(weight.dtype).contiguous())
        for columns, fit in fits.items()
    }
