"""Names of what is stored in a study: attributes, metrics and directions."""

from __future__ import annotations

from typing import Literal

_PREFIX = "effllava:"

# User attributes of a study.
CONFIG = f"{_PREFIX}config"
STRUCTURE = f"{_PREFIX}structure"
TASK = f"{_PREFIX}task"
MANIFEST = f"{_PREFIX}manifest"
CHANGES = f"{_PREFIX}changes"
RESULTS = f"{_PREFIX}results"
SCORES = f"{_PREFIX}scores"
CHOSEN = f"{_PREFIX}chosen"
EXPORTED = f"{_PREFIX}exported"
LEGACY = frozenset({f"{_PREFIX}spec", f"{_PREFIX}anatomy"})  # of older versions

CALIBRATION_FORMAT = 4  # format of what epoch 0 of the control study publishes

# Attributes of a trial.
CONSTRAINTS = "constraints"  # system attribute: the trial is infeasible if a value is above zero
REASON = "reason"  # why the trial failed, for the dashboard
OVER_BUDGET = "over_budget"  # how far the policy is above the budget, in words

METRICS = ["quality", "latency_ms"]
DIRECTIONS: list[Literal["maximize", "minimize"]] = ["maximize", "minimize"]


def control_name(study_name: str) -> str:
    """Return the name of the control study of a study."""
    return f"{study_name}/projector"
