"""Policies that no search has found."""

from effllava_optuna.baselines.uniform import one_number, two_numbers

__all__ = ["one_number", "two_numbers"]
