"""What a policy is judged by: accuracy, structural risk, latency, size."""

from effllava_optuna.objectives.accuracy import (
    EncodedBatch,
    encode_samples,
    groups_of,
    samples_of,
    score_batch,
    score_policy,
    split_folds,
    tracked,
)
from effllava_optuna.objectives.dense_answering import answer_questions, graded_samples
from effllava_optuna.objectives.encoded_proxy import EncodedProxy
from effllava_optuna.objectives.grading import (
    LIKELIEST,
    Measure,
    constant_of,
    describe_task,
    measure_of,
    number_groups,
    options_compared,
    rule_of,
)
from effllava_optuna.objectives.latency_measurement import (
    fit_correction,
    measure_table,
    measure_token_ratios,
    origin_of,
    whole_ms,
)
from effllava_optuna.objectives.latency_table import LatencyTable
from effllava_optuna.objectives.risk import FORMS, risk, risk_table
from effllava_optuna.objectives.scored_split import ScoredSplit
from effllava_optuna.objectives.size import flops, parameters, peak_memory_mb
from effllava_optuna.objectives.stopwatch import Stopwatch
from effllava_optuna.objectives.timing import Workload

__all__ = [
    "FORMS",
    "LIKELIEST",
    "EncodedBatch",
    "EncodedProxy",
    "LatencyTable",
    "Measure",
    "ScoredSplit",
    "Stopwatch",
    "Workload",
    "answer_questions",
    "constant_of",
    "describe_task",
    "encode_samples",
    "fit_correction",
    "flops",
    "graded_samples",
    "groups_of",
    "measure_of",
    "measure_table",
    "measure_token_ratios",
    "number_groups",
    "options_compared",
    "origin_of",
    "parameters",
    "peak_memory_mb",
    "risk",
    "risk_table",
    "rule_of",
    "samples_of",
    "score_batch",
    "score_policy",
    "split_folds",
    "tracked",
    "whole_ms",
]
