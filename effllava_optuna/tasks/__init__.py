"""Samples, prompts, batches and scores."""

from effllava_optuna.tasks._task import Rule, Sample, Split, Task, checked, proxy_only
from effllava_optuna.tasks.batches import Batch, encode, prompts
from effllava_optuna.tasks.data import DataTask
from effllava_optuna.tasks.digits import Digits
from effllava_optuna.tasks.schemas import Options
from effllava_optuna.tasks.scoring import (
    Scores,
    answer_divergence,
    answer_loss,
    grade,
    graded,
    score,
    target_logits,
)

__all__ = [
    "Batch",
    "DataTask",
    "Digits",
    "Options",
    "Rule",
    "Sample",
    "Scores",
    "Split",
    "Task",
    "answer_divergence",
    "answer_loss",
    "checked",
    "encode",
    "grade",
    "graded",
    "prompts",
    "proxy_only",
    "score",
    "target_logits",
]
