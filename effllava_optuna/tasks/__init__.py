"""Samples, prompts, batches and scores."""

from effllava_optuna.tasks._task import Sample, Split, Task, checked, proxy_only
from effllava_optuna.tasks.batches import Batch, encode
from effllava_optuna.tasks.digits import Digits
from effllava_optuna.tasks.scoring import Scores, score, target_logits

__all__ = [
    "Batch",
    "Digits",
    "Sample",
    "Scores",
    "Split",
    "Task",
    "checked",
    "encode",
    "proxy_only",
    "score",
    "target_logits",
]
