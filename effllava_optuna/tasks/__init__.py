"""Tasks: samples in three splits, their prompts, and the scores of answers."""

from effllava_optuna.tasks.data.digits import Digits
from effllava_optuna.tasks.data.row_task import DataTask
from effllava_optuna.tasks.dense_answers import (
    AGREEMENT,
    DenseAnswers,
    answers_from_json,
    answers_to_json,
    with_dense_answers,
)
from effllava_optuna.tasks.judging.benchmark_judges import (
    AnsweredQuestion,
    judge_llava_bench,
    judge_mmvet,
)
from effllava_optuna.tasks.judging.judgements import JudgedScore
from effllava_optuna.tasks.judging.openai_judge import OpenAIJudge
from effllava_optuna.tasks.prompts import Batch, encode_prompts, encode_with_answers
from effllava_optuna.tasks.sample import UNLABELLED, DenseAnswer, GradingRule, Sample, Split
from effllava_optuna.tasks.schemas import TaskOptions
from effllava_optuna.tasks.scoring.agreement import (
    DenseOutputs,
    count_outputs,
    dense_outputs,
    score_agreement,
)
from effllava_optuna.tasks.scoring.scores import (
    Scores,
    answer_divergence,
    answer_loss,
    grade_answer,
    grade_answers,
    score_logits,
    score_on_device,
    target_logits,
)
from effllava_optuna.tasks.task import Task, digest_samples, require_proxy, validate_task

__all__ = [
    "AGREEMENT",
    "UNLABELLED",
    "AnsweredQuestion",
    "Batch",
    "DataTask",
    "DenseAnswer",
    "DenseAnswers",
    "DenseOutputs",
    "Digits",
    "GradingRule",
    "JudgedScore",
    "OpenAIJudge",
    "Sample",
    "Scores",
    "Split",
    "Task",
    "TaskOptions",
    "answer_divergence",
    "answer_loss",
    "answers_from_json",
    "answers_to_json",
    "count_outputs",
    "dense_outputs",
    "digest_samples",
    "encode_prompts",
    "encode_with_answers",
    "grade_answer",
    "grade_answers",
    "judge_llava_bench",
    "judge_mmvet",
    "require_proxy",
    "score_agreement",
    "score_logits",
    "score_on_device",
    "target_logits",
    "validate_task",
    "with_dense_answers",
]
