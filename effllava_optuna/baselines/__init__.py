"""Policies that no search has found."""

from effllava_optuna.baselines.allocation import additive, global_rank, greedy
from effllava_optuna.baselines.uniform import one_number, two_numbers

__all__ = ["additive", "global_rank", "greedy", "one_number", "two_numbers"]
