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
    measure_table,
    origin_of,
    whole_ms,
)
from effllava_optuna.objectives.risk import FORMS, risk, risk_table
from effllava_optuna.objectives.size import flops, parameters, peak_memory_mb
from effllava_optuna.objectives.timing import Stopwatch, Workload

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
    "origin_of",
    "parameters",
    "peak_memory_mb",
    "risk",
    "risk_table",
    "samples_of",
    "scored",
    "units_of",
    "whole_ms",
]
