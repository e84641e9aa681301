"""Fit the output matrices of one policy in forward order, each to the layers pruned before it.

The fits of `rank_and_compensate` serve every policy, because they use the inputs that each
component has in the dense model. For a single policy, the inputs that the pruned layers before a
component compute are known as well. With x the dense input and x' the input from the kept units
of the pruned model, the fit is

    W' = argmin E[w ||W x - W' x'||^2] = W E[w x x'^T] inv(E[w x' x'^T]).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Policy
from effllava_optuna.surgery.apply.arrangement import arranged
from effllava_optuna.surgery.apply.compensation_table import FittedOutput
from effllava_optuna.surgery.apply.narrowing import narrowed
from effllava_optuna.surgery.compensation.least_squares import cholesky_factor, fit_to_target
from effllava_optuna.surgery.compensation.resumed_runs import ResumedRuns
from effllava_optuna.surgery.importance.moments import joint_weights, ridge_penalty
from effllava_optuna.surgery.importance.unit_statistics import weigh_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.policy import ComponentId, Ranking
    from effllava_optuna.surgery.apply.compensation_table import CompensationTable
    from effllava_optuna.surgery.importance.calibration_batch import CalibrationBatch
    from effllava_optuna.surgery.importance.moments import Moments, TokenWeights
    from effllava_optuna.surgery.structure.component_handle import ComponentHandle
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

DAMPING = 1e-2  # of a component for which none was chosen


@dataclass(frozen=True)
class SequentialOptions:
    """How a policy is fitted in sequence.

    Attributes:
        tokens: Token weights; see `collect_statistics`.
        damping: By component, the fraction of the mean of the diagonal of E[w x x^T] that is
            added to the diagonal, which pulls the fit towards the original columns; `DAMPING` for
            a component that is missing.
    """

    tokens: str = "gradient"
    damping: Mapping[ComponentId, float] = field(default_factory=dict)


def compensate_in_sequence(
    loaded: LoadedModel,
    policy: Policy,
    ranking: Ranking,
    batches: Sequence[CalibrationBatch],
    *,
    options: SequentialOptions | None = None,
    progress: Callable[[float], None] | None = None,
) -> CompensationTable:
    """Fit the components of ``policy`` in forward order, each to the pruned layers before it.

    Token weights are those of the dense model, and take one sweep over ``batches``, forward and
    backward. Components of dense width are not fitted.

    Args:
        loaded: The model.
        policy: Units kept at each component.
        ranking: The ranking that selects those units.
        batches: Calibration samples.
        options: Token weights and damping.
        progress: Called with the finished fraction.

    Returns:
        A compensation table for this policy alone.

    Raises:
        PolicyError: The policy belongs to another structure.
        ModelError: The ranking belongs to another structure, or moments cannot be factored.
    """
    options = options or SequentialOptions()
    policy.check(loaded.structure)
    ids = (component.id for component in loaded.structure.components)
    kept, active = dict(zip(ids, policy.widths, strict=True)), policy.active_widths
    # Components without an output matrix, such as whole blocks, are pruned from the beginning.
    fitted = {handle.component.id for handle in loaded.handles}
    pruned: dict[str, int] = {
        component: count for component, count in kept.items() if component not in fitted
    }
    compensation: dict[tuple[ComponentId, int], FittedOutput] = {}
    with arranged(loaded, ranking) as ready:
        runs = ResumedRuns(ready, batches)
        narrow = [h for h in ready.handles if 0 < active[h.component.id] < h.component.width]
        weights = weigh_tokens(ready, [narrow] if narrow else [], batches, options.tokens)
        for number, handle in enumerate(ready.handles):
            component = handle.component.id
            pruned[component] = kept[component]
            if 0 < active[component] < handle.component.width:
                partial = Policy.of(ready.structure, pruned)
                own = {n: each[component] for n, each in enumerate(weights) if component in each}
                moments = _moments(ready, handle, partial, compensation, runs, own)
                if moments is not None:
                    weight = _fit(handle, *moments, options.damping.get(component, DAMPING))
                    compensation[component, kept[component]] = FittedOutput(weight)
            if progress is not None:
                progress((number + 1) / len(ready.handles))
    return compensation


def _moments(
    ready: LoadedModel,
    handle: ComponentHandle,
    partial: Policy,
    compensation: CompensationTable,
    runs: ResumedRuns,
    weights: Mapping[int, TokenWeights],
) -> tuple[Moments, Moments, Moments] | None:
    """Return the moments of x (mean squares), of x with x', and of x'.

    None if no batch runs the component, in the dense model or under the policy ``partial``.
    """
    if ready.ranking is None:
        raise ModelError(f"{ready.source} is not arranged.", hint="Use `with arranged(...)`.")
    total: tuple[Moments, Moments, Moments] | None = None
    joint = joint_weights([*weights.values()])
    for number, tokens in zip(weights, joint, strict=True):
        x = runs.dense(handle, number)
        with narrowed(ready, partial, ready.ranking, compensation) as network:
            pruned_x = runs.pruned(network, handle, number)
        if x is None or pruned_x is None:
            return None
        moments = (
            tokens.moments(x, full=False),
            tokens.moments(x, pruned_x),
            tokens.moments(pruned_x),
        )
        if total is not None:
            moments = (total[0] + moments[0], total[1] + moments[1], total[2] + moments[2])
        total = moments
    return total


def _fit(
    handle: ComponentHandle, dense: Moments, cross: Moments, pruned: Moments, damping: float
) -> torch.Tensor:
    """Compute W', shape ``(out, kept columns)``, from the moments of `_moments`."""
    weight = handle.linear(handle.output).weight.detach()
    penalty = ridge_penalty(dense.mean_squares, damping)
    matrix, target = pruned.matrix, cross.matrix
    matrix.diagonal().add_(penalty)
    target.diagonal().add_(penalty)  # pulls towards the original columns of the kept units
    lower = cholesky_factor(matrix, handle.component.id, damping)
    kept = len(matrix)
    fitted = fit_to_target(weight.double() @ target, lower, [kept])[kept]
    return fitted.to(weight.dtype).contiguous()
