"""What a policy is judged by: accuracy, structural risk, latency, size."""

from effllava_optuna.objectives.accuracy import (
    Asked,
    answers,
    ask,
    ask_crossed,
    folds_of,
    units_of,
)
from effllava_optuna.objectives.latency import (
    LatencyTable,
    Stopwatch,
    Workload,
    measure_table,
    undisturbed,
)
from effllava_optuna.objectives.risk import FORMS, risk, risk_table
from effllava_optuna.objectives.size import flops, parameters

__all__ = [
    "FORMS",
    "Asked",
    "LatencyTable",
    "Stopwatch",
    "Workload",
    "answers",
    "ask",
    "ask_crossed",
    "flops",
    "folds_of",
    "measure_table",
    "parameters",
    "risk",
    "risk_table",
    "undisturbed",
    "units_of",
]
