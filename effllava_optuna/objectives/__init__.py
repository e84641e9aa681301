"""What a policy is judged by: accuracy, structural risk, latency, size."""

from effllava_optuna.objectives.accuracy import (
    Asked,
    answers,
    ask,
    ask_crossed,
    folds_of,
    samples_of,
    scored,
    units_of,
)
from effllava_optuna.objectives.examine import LIKELIEST, Answered, compared, examine
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
    "LIKELIEST",
    "Answered",
    "Asked",
    "LatencyTable",
    "Stopwatch",
    "Workload",
    "answers",
    "ask",
    "ask_crossed",
    "compared",
    "examine",
    "flops",
    "folds_of",
    "measure_table",
    "parameters",
    "risk",
    "risk_table",
    "samples_of",
    "scored",
    "undisturbed",
    "units_of",
]
