"""Policies without a search: uniform, global rank, greedy and dynamic programming."""

from effllava_optuna.allocation.dynamic_programming import (
    allocation_front,
    allocation_range,
    dynamic_programming,
)
from effllava_optuna.allocation.global_rank import global_rank
from effllava_optuna.allocation.greedy import greedy
from effllava_optuna.allocation.sensitivity import (
    Sensitivity,
    curve_policies,
    losses_by_widths,
    neighbouring_policies,
    residual_curves,
    sensitivity_curves,
)
from effllava_optuna.allocation.uniform import uniform_by_kind, uniform_policies
from effllava_optuna.allocation.weighted_programme import WeightedProgramme

__all__ = [
    "Sensitivity",
    "WeightedProgramme",
    "allocation_front",
    "allocation_range",
    "curve_policies",
    "dynamic_programming",
    "global_rank",
    "greedy",
    "losses_by_widths",
    "neighbouring_policies",
    "residual_curves",
    "sensitivity_curves",
    "uniform_by_kind",
    "uniform_policies",
]
