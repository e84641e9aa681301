"""The cost model of a study: the budget that its file states."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from effllava_optuna.calibration.calibration import narrowest_policy
from effllava_optuna.errors import ConfigError, UnreachableError
from effllava_optuna.policy import IMAGE_TOKENS, CostModel, latency_costs, parameter_costs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.calibration.calibration import TimedWidths
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.objectives import LatencyTable
    from effllava_optuna.policy import ComponentId, Costs, ModelStructure


def budget_of(config: StudyConfig, timed: TimedWidths, latency_factor: float = 1.0) -> CostModel:
    """Return the costs of policies, and their limit: a share of the weights, or of the latency.

    Args:
        config: The study file.
        timed: Has the latency table.
        latency_factor: Share of the predicted savings that is expected in this epoch.

    Raises:
        ConfigError: No policy is within the limit.
    """
    speedup = required_speedup(config, timed)
    if speedup is not None:
        return _latency_budget(config, timed, speedup, latency_factor)
    return weight_budget(config, timed.structure, timed.widths)


def weight_budget(
    config: StudyConfig,
    structure: ModelStructure,
    widths: Mapping[ComponentId, Sequence[int]],
) -> CostModel:
    """Return the shares of the prunable weights that policies keep, and the limit on them.

    Args:
        config: The study file.
        structure: The structure of the model.
        widths: Allowed widths by component, ascending.

    Raises:
        ConfigError: No policy is within the limit.
    """
    keep_ratio = config.search.keep_ratio
    budget = CostModel(
        costs=parameter_costs(structure, widths),
        limit=keep_ratio,
        unit="of the weights",
        setting=f"search.keep_ratio = {keep_ratio}",
    )
    narrowest = narrowest_policy(structure, widths)
    if not budget.allows(narrowest):
        least = math.ceil(1000 * budget.cost(narrowest)) / 1000  # rounded so that it is allowed
        raise ConfigError(
            f"search.keep_ratio = {keep_ratio}: the narrowest policy keeps {least:.3f} of the "
            "prunable weights.",
            hint=f"Use {least:.3f} or more, or smaller pruning.width_ratios.",
        )
    return budget


def attainable_factor(config: StudyConfig, timed: TimedWidths, factor: float) -> float:
    """Return ``factor``, or the smallest one with which a policy is as fast as the study asks."""
    speedup = required_speedup(config, timed)
    if speedup is None:
        return factor
    budget = _latency_budget(config, timed, speedup, 1.0)
    most_saved = budget.cost(timed.narrowest)
    if budget.limit is None or most_saved == 0:
        return factor
    return max(factor, budget.limit / most_saved)


def required_speedup(config: StudyConfig, timed: TimedWidths) -> float | None:
    """Return how many times as fast as the dense model a policy must be; None: any is allowed.

    Raises:
        ConfigError: The dense model is fast enough.
    """
    limit_ms, dense_ms = config.search.latency_ms, timed.dense_ms
    if limit_ms is None:
        return config.search.speedup
    if dense_ms <= limit_ms:
        raise ConfigError(
            f"search.latency_ms = {limit_ms:g}: the dense model takes {dense_ms:.1f} ms.",
            hint="Use a smaller limit, or another budget.",
        )
    return dense_ms / limit_ms


def _reachable(config: StudyConfig, dense_ms: float, reach: float) -> str:
    """Return the limit that the narrowest policy just meets, as the study file states it."""
    if config.search.latency_ms is None:
        return f"search.speedup = {math.floor(100 * reach) / 100:.2f} or less"
    return f"search.latency_ms = {math.ceil(100 * dense_ms / reach) / 100:.2f} or more"


def speed_setting(config: StudyConfig) -> str:
    """Return the key of the study file that limits latencies, with its value."""
    search = config.search
    if search.latency_ms is None:
        return f"search.speedup = {search.speedup}"
    return f"search.latency_ms = {search.latency_ms:g}"


def _latency_budget(
    config: StudyConfig, timed: TimedWidths, speedup: float, factor: float
) -> CostModel:
    latency, dense_ms = timed.latency, timed.dense_ms

    def costs_of(table: LatencyTable) -> Costs:
        # Image tokens and widths multiply: each number of tokens has costs of its own.
        by_tokens = factor * (table.dense_total_ms - latency.dense_total_ms)
        saved_ms = {
            component: {
                width: by_tokens
                if component == IMAGE_TOKENS.id
                else factor * table.saved(component, width)
                for width in widths
            }
            for component, widths in timed.widths.items()
        }
        return latency_costs(timed.structure, saved_ms)

    fewer = {percent: costs_of(table) for percent, table in latency.fewer.items()}
    budget = CostModel(
        costs=costs_of(latency),
        by_tokens=fewer | {IMAGE_TOKENS.width: costs_of(latency)} if fewer else {},
        limit=dense_ms / speedup - dense_ms,
        unit="ms",
        setting=speed_setting(config),
    )
    if not budget.allows(timed.narrowest):
        reach = dense_ms / latency.predict(timed.narrowest, factor)
        raise UnreachableError(
            f"{speed_setting(config)}: the narrowest policy is {reach:.2f} times as fast as the "
            f"dense model, which takes {dense_ms:.1f} ms.",
            hint=f"Use {_reachable(config, dense_ms, reach)}, smaller pruning.width_ratios, or a "
            "larger latency.batch.",
        )
    return budget
