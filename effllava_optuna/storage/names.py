"""Names of what is stored in a study: attributes, metrics and directions."""

from __future__ import annotations

import re
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
FINALISTS = f"{_PREFIX}finalists"  # their trials, before validation is opened
CHOSEN = f"{_PREFIX}chosen"
ANSWERS = f"{_PREFIX}answers"  # of the dense model; with the name of a split of unlabelled samples
EXPORTED = f"{_PREFIX}exported"
CONTROL = f"{_PREFIX}control"  # name of the control study
LEGACY = frozenset({f"{_PREFIX}spec", f"{_PREFIX}anatomy"})  # of older versions

CALIBRATION_FORMAT = 5  # format of what epoch 0 of the control study publishes

# Attributes of a trial.
CONSTRAINTS = "constraints"  # system attribute: the trial is infeasible if a value is above zero
REASON = "reason"  # why the trial failed, for the dashboard
OVER_BUDGET = "over_budget"  # how far the policy is above the budget, in words

METRICS = ["quality", "latency_ms"]
DIRECTIONS: list[Literal["maximize", "minimize"]] = ["maximize", "minimize"]

_CONTROL_NAME = re.compile(r".*/projector(-\d+)?", re.DOTALL)


def control_name(study_name: str, number: int = 1) -> str:
    """Return the ``number``-th name that the control study of a study may have."""
    return f"{study_name}/projector" + (f"-{number}" if number > 1 else "")


def is_control_name(study_name: str) -> bool:
    """Return whether a study with this name is the control study of another one."""
    return _CONTROL_NAME.fullmatch(study_name) is not None
