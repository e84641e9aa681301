"""Rank the units of all components and fit their output matrices, within a limit of memory.

Components are taken in groups whose moments fit into memory together. Each group takes one sweep
over the samples, which yields the ranking and the compensation tables of its components. If the
moments of all components fit, there is one sweep.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from effllava_optuna.errors import ModelError
from effllava_optuna.policy import Ranking
from effllava_optuna.policy.ranking import rank_component
from effllava_optuna.surgery.apply.arrangement import current_ranking
from effllava_optuna.surgery.apply.compensation_table import FittedOutput
from effllava_optuna.surgery.compensation.least_squares import (
    COMPENSATIONS,
    choose_damping,
    least_squares,
    mean_biases,
    sum_folds,
)
from effllava_optuna.surgery.compensation.memory_limit import split_by_memory
from effllava_optuna.surgery.compensation.output_error import OutputErrors, block_residuals
from effllava_optuna.surgery.importance.criteria import (
    DATA_FREE,
    check_importance,
    goal_of,
    score_units,
)
from effllava_optuna.surgery.importance.unit_statistics import collect_statistics
from effllava_optuna.surgery.structure.component_handle import element_indices

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery.apply.compensation_table import CompensationTable
    from effllava_optuna.surgery.importance.calibration_batch import CalibrationBatch
    from effllava_optuna.surgery.importance.moments import Moments
    from effllava_optuna.surgery.importance.unit_statistics import UnitStatistics
    from effllava_optuna.surgery.structure.component_handle import ComponentHandle
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel


@dataclass(frozen=True, slots=True)
class PruningOptions:
    """How units are ranked and output matrices are fitted.

    Attributes:
        importance: Criterion of the ranking, one of `IMPORTANCES`.
        compensation: ``none``; ``bias``: the mean output of the removed units is added to the
            output bias; ``least-squares``: the output matrix is fitted to the kept units.
        tokens: Token weights: see `collect_statistics`.
        seed: Seed of the importance ``random``.
        table_gb: Most gigabytes for the fits and their computation together.
        table_sets: Complete sets of tables in memory at once: that of `rank_and_compensate`, and
            those that `compensate_in_context` has fitted again.
    """

    importance: str = "obs"
    compensation: str = "least-squares"
    tokens: str = "gradient"
    seed: int = 0
    table_gb: float = 8.0
    table_sets: int = 1

    def __post_init__(self) -> None:
        if self.compensation not in COMPENSATIONS:
            raise ModelError(
                f"{self.compensation!r} is not a compensation.",
                hint=f"Use {', '.join(COMPENSATIONS)}.",
            )

    @property
    def full_moments(self) -> bool:
        """Return whether whole matrices of second moments are needed."""
        return self.compensation == "least-squares" or self.importance == "obs"

    @property
    def needs_samples(self) -> bool:
        """Return whether calibration samples are needed."""
        return self.compensation != "none" or self.importance not in DATA_FREE


@dataclass(frozen=True)
class CompensatedRanking:
    """A ranking and the compensation tables that were fitted under it.

    Attributes:
        ranking: The ranking of all units.
        compensations: The table fitted on all folds, then those without each fold in turn. None:
            no compensation.
        damping: By component, the damping that was chosen.
        effective_tokens: By component, Kish's effective number of tokens under its token weights.
        residuals: By component and width, the estimated mean squared change of the answer margin
            if the component alone has this width, in squared logits: see `output_error`. Empty if
            neither ranking nor compensation needs samples.
    """

    ranking: Ranking
    compensations: tuple[CompensationTable | None, ...]
    damping: Mapping[ComponentId, float]
    effective_tokens: Mapping[ComponentId, float]
    residuals: Mapping[ComponentId, Mapping[int, float]]

    @property
    def nbytes(self) -> int:
        """Count the bytes of the compensation tables."""
        return sum(
            fitted.nbytes
            for compensation in self.compensations
            for fitted in (compensation or {}).values()
        )


@dataclass(frozen=True, slots=True)
class FittedComponent:
    """The fits of one component.

    Attributes:
        fits: By number of units kept: the fits on all folds, then without each fold in turn.
        damping: The damping that was chosen; None if nothing was factored.
        errors: By number of units kept, the damped residual of the fit on all folds; empty if
            nothing was factored.
    """

    fits: tuple[Mapping[int, FittedOutput], ...]
    damping: float | None = None
    errors: Mapping[int, float] = field(default_factory=dict)


def rank_and_compensate(
    loaded: LoadedModel,
    folds: Sequence[Sequence[CalibrationBatch]],
    widths: Mapping[ComponentId, Sequence[int]],
    options: PruningOptions,
    progress: Callable[[float], None] | None = None,
) -> CompensatedRanking:
    """Rank the units of every component, and fit its output matrix for every width.

    Args:
        loaded: The model, not arranged.
        folds: Calibration samples, in at least two folds.
        widths: By component, the numbers of units that get a fit.
        options: Importance, compensation and limit of memory.
        progress: Called with the finished fraction.

    Raises:
        ModelError: The importance or the token weight is unknown, ``options.table_gb`` is too
            small, the model is arranged, or moments cannot be factored.
    """
    check_importance(options.importance, has_samples=any(folds))
    if current_ranking(loaded) is not None:
        raise ModelError(
            f"{loaded.source} is arranged at present.",
            hint="Leave `with arranged(...)` before ranking and fitting.",
        )
    compensations: list[dict[tuple[ComponentId, int], FittedOutput]] = [
        {} for _ in range(len(folds) + 1)
    ]
    damping: dict[ComponentId, float] = {}
    effective_tokens: dict[ComponentId, float] = {}
    residuals: dict[ComponentId, Mapping[int, float]] = {}
    lost: dict[ComponentId, float] = {}
    scores = {}
    samples = sum(len(batch.inputs["input_ids"]) for batches in folds for batch in batches)
    for handles in split_by_memory(loaded.handles, len(folds), widths, options):
        statistics = [_collect(loaded, handles, batches, options) for batches in folds]
        for handle in handles:
            component = handle.component
            by_fold = [fold.pop(component.id) for fold in statistics if fold]
            total = sum(by_fold[1:], start=by_fold[0]) if by_fold else None
            scores[component.id] = score_units(
                loaded, handle, options.importance, total, seed=options.seed
            )
            units = torch.from_numpy(
                rank_component(component, options.importance, scores[component.id])
            )
            errors = None
            if total is not None:
                effective_tokens[component.id] = round(total.moments.effective_tokens, 1)
                errors = OutputErrors.of(
                    handle, total, samples, units, widths[component.id], options.compensation
                )
            del total  # as large as the moments of a fold
            fitted_errors: Mapping[int, float] = {}
            if options.compensation != "none":
                fitted = fit_component(
                    handle,
                    [part.moments for part in by_fold],
                    units,
                    widths[component.id],
                    options.compensation,
                )
                for compensation, fits in zip(compensations, fitted.fits, strict=True):
                    compensation.update({(component.id, kept): fit for kept, fit in fits.items()})
                if fitted.damping is not None:
                    damping[component.id] = fitted.damping
                fitted_errors = fitted.errors
            if errors is not None:
                residuals[component.id] = errors.residuals(fitted_errors)
                lost[component.id] = errors.scale * errors.lost
            if progress is not None:
                progress(len(scores) / len(loaded.handles))
    return CompensatedRanking(
        Ranking.from_scores(loaded.structure, options.importance, scores),
        tuple(None if options.compensation == "none" else table for table in compensations),
        damping,
        effective_tokens,
        residuals | block_residuals(loaded.structure, residuals, lost),
    )


def estimate_residuals(
    loaded: LoadedModel,
    batches: Sequence[CalibrationBatch],
    widths: Mapping[ComponentId, Sequence[int]],
    fitted: CompensatedRanking,
    options: PruningOptions,
    progress: Callable[[float], None] | None = None,
) -> dict[ComponentId, Mapping[int, float]]:
    """Estimate what narrowing each component alone costs, on other inputs than those of the fits.

    Under the ranking and the dampings of the fits, each component is factored once; nothing is
    fitted.

    Args:
        loaded: The model, not arranged; for example one that reads fewer image tokens.
        batches: Calibration samples, in the form that it reads.
        widths: By component, the numbers of units kept.
        fitted: What `rank_and_compensate` has returned for ``options``.
        options: Importance, compensation and limit of memory.
        progress: Called with the finished fraction.

    Returns:
        As `CompensatedRanking.residuals`.

    Raises:
        ModelError: As `rank_and_compensate`.
    """
    if not fitted.residuals:
        return {}
    residuals: dict[ComponentId, Mapping[int, float]] = {}
    lost: dict[ComponentId, float] = {}
    samples = sum(len(batch.inputs["input_ids"]) for batch in batches)
    folds = len(fitted.compensations) - 1  # their tables are in memory
    for handles in split_by_memory(loaded.handles, folds, widths, options):
        statistics = _collect(loaded, handles, batches, options)
        for handle in handles:
            component, kept = handle.component.id, widths[handle.component.id]
            units = torch.from_numpy(fitted.ranking.units[component])
            found = statistics.pop(component)
            errors = OutputErrors.of(handle, found, samples, units, kept, options.compensation)
            damped: Mapping[int, float] = {}
            if options.compensation == "least-squares":
                damped = _damped_errors(
                    handle, found.moments, units, kept, fitted.damping.get(component)
                )
            residuals[component] = errors.residuals(damped)
            lost[component] = errors.scale * errors.lost
            if progress is not None:
                progress(len(lost) / len(loaded.handles))
    return residuals | block_residuals(loaded.structure, residuals, lost)


def _damped_errors(
    handle: ComponentHandle,
    moments: Moments,
    units: torch.Tensor,
    widths: Sequence[int],
    damping: float | None,
) -> dict[int, float]:
    """Return the damped residual of a fit by number of units kept; None: all units are kept."""
    if damping is None:
        return dict.fromkeys(widths, 0.0)
    output = handle.linear(handle.output)
    ranking = element_indices(units, handle.columns).to(output.weight.device)
    matrix = moments.matrix[ranking[:, None], ranking]
    fit = least_squares(output.weight.detach()[:, ranking], matrix, [], damping)
    return {width: float(fit.residuals[width * handle.columns]) for width in widths}


def _collect(
    loaded: LoadedModel,
    handles: Sequence[ComponentHandle],
    batches: Sequence[CalibrationBatch],
    options: PruningOptions,
) -> dict[ComponentId, UnitStatistics]:
    if not options.needs_samples:
        return {}
    return collect_statistics(
        loaded,
        handles,
        batches,
        tokens=options.tokens,
        goal=goal_of(options.importance),
        full=options.full_moments,
    )


def fit_component(
    handle: ComponentHandle,
    folds: Sequence[Moments],
    units: torch.Tensor,
    widths: Sequence[int],
    compensation: str,
) -> FittedComponent:
    """Fit the output matrix of one component for every width: on all folds, and without each.

    Args:
        handle: The component.
        folds: The moments of each fold, columns in the model's present order.
        units: Shape ``(width,)``: unit numbers, most important first.
        widths: Numbers of units kept; the dense width needs no fit.
        compensation: ``bias`` or ``least-squares``.
    """
    unit_columns, output = handle.columns, handle.linear(handle.output)
    columns = [width * unit_columns for width in widths if width < handle.component.width]
    if not columns:
        return FittedComponent(
            tuple({} for _ in range(len(folds) + 1)), errors=dict.fromkeys(widths, 0.0)
        )
    ranking = element_indices(units, unit_columns).to(output.weight.device)
    weight = output.weight.detach()[:, ranking]
    fits: list[dict[int, FittedOutput]] = []
    errors: dict[int, float] = {}
    damping = None
    if compensation == "least-squares":
        compared = columns[:: max(1, len(columns) // 3)]
        damping = choose_damping(weight, folds, ranking, compared)
    for left_out in (None, *range(len(folds))):
        # The sum gets no name: it is as large as the moments of a fold, and is freed at once.
        if damping is None:
            mean = sum_folds(folds, left_out=left_out).mean[ranking]
            biases = mean_biases(weight, output.bias, mean, columns)
            fits.append({k // unit_columns: FittedOutput(bias=bias) for k, bias in biases.items()})
        else:
            matrix = sum_folds(folds, left_out=left_out).matrix[ranking[:, None], ranking]
            fit = least_squares(weight, matrix, columns, damping)
            fits.append(
                {
                    k // unit_columns: FittedOutput(fitted.contiguous())
                    for k, fitted in fit.weights.items()
                }
            )
            if left_out is None:
                errors = {width: float(fit.residuals[width * unit_columns]) for width in widths}
    return FittedComponent(tuple(fits), damping, errors)
