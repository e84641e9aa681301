"""Policies without a search: uniform, global rank, greedy and dynamic programming."""

from effllava_optuna.allocation.dynamic_programming import dynamic_programming
from effllava_optuna.allocation.global_rank import global_rank
from effllava_optuna.allocation.greedy import greedy
from effllava_optuna.allocation.uniform import uniform_by_kind, uniform_policies

__all__ = [
    "dynamic_programming",
    "global_rank",
    "greedy",
    "uniform_by_kind",
    "uniform_policies",
]
