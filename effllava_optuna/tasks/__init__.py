"""Samples, prompts, batches and scores."""

from effllava_optuna.tasks._task import (
    Rule,
    Sample,
    Split,
    Task,
    checked,
    digest_of,
    proxy_only,
)
from effllava_optuna.tasks.batches import Batch, encode, prompts
from effllava_optuna.tasks.chat import OpenAIJudge
from effllava_optuna.tasks.data import DataTask
from effllava_optuna.tasks.digits import Digits
from effllava_optuna.tasks.judge import (
    LlavaBenchRow,
    MMVetRow,
    judge_llava_bench,
    judge_mmvet,
)
from effllava_optuna.tasks.schemas import Options
from effllava_optuna.tasks.scoring import (
    Scores,
    answer_divergence,
    answer_loss,
    grade,
    graded,
    score,
    target_logits,
    weighed,
)
from effllava_optuna.tasks.verdict import Judged

__all__ = [
    "Batch",
    "DataTask",
    "Digits",
    "Judged",
    "LlavaBenchRow",
    "MMVetRow",
    "OpenAIJudge",
    "Options",
    "Rule",
    "Sample",
    "Scores",
    "Split",
    "Task",
    "answer_divergence",
    "answer_loss",
    "checked",
    "digest_of",
    "encode",
    "grade",
    "graded",
    "judge_llava_bench",
    "judge_mmvet",
    "prompts",
    "proxy_only",
    "score",
    "target_logits",
    "weighed",
]
