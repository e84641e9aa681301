"""Tasks: samples in three splits, their prompts, and the scores of answers.

Names are imported when they are first used (PEP 562): rows are read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.lazy_names import lazy_names

if TYPE_CHECKING:
    from effllava_optuna.tasks.data.digits import Digits as Digits
    from effllava_optuna.tasks.data.row_task import DataTask as DataTask
    from effllava_optuna.tasks.dense_answers import AGREEMENT as AGREEMENT
    from effllava_optuna.tasks.dense_answers import DenseAnswers as DenseAnswers
    from effllava_optuna.tasks.dense_answers import answers_from_json as answers_from_json
    from effllava_optuna.tasks.dense_answers import answers_to_json as answers_to_json
    from effllava_optuna.tasks.dense_answers import with_dense_answers as with_dense_answers
    from effllava_optuna.tasks.judging.benchmark_judges import AnsweredQuestion as AnsweredQuestion
    from effllava_optuna.tasks.judging.benchmark_judges import (
        judge_llava_bench as judge_llava_bench,
    )
    from effllava_optuna.tasks.judging.benchmark_judges import judge_mmvet as judge_mmvet
    from effllava_optuna.tasks.judging.judgements import JudgedScore as JudgedScore
    from effllava_optuna.tasks.judging.openai_judge import OpenAIJudge as OpenAIJudge
    from effllava_optuna.tasks.prompts import Batch as Batch
    from effllava_optuna.tasks.prompts import divide_samples as divide_samples
    from effllava_optuna.tasks.prompts import encode_prompts as encode_prompts
    from effllava_optuna.tasks.prompts import encode_with_answers as encode_with_answers
    from effllava_optuna.tasks.sample import UNLABELLED as UNLABELLED
    from effllava_optuna.tasks.sample import DenseAnswer as DenseAnswer
    from effllava_optuna.tasks.sample import GradingRule as GradingRule
    from effllava_optuna.tasks.sample import Sample as Sample
    from effllava_optuna.tasks.sample import Split as Split
    from effllava_optuna.tasks.schemas import TaskOptions as TaskOptions
    from effllava_optuna.tasks.scoring.agreement import DenseOutputs as DenseOutputs
    from effllava_optuna.tasks.scoring.agreement import count_outputs as count_outputs
    from effllava_optuna.tasks.scoring.agreement import dense_outputs as dense_outputs
    from effllava_optuna.tasks.scoring.agreement import score_agreement as score_agreement
    from effllava_optuna.tasks.scoring.scores import Scores as Scores
    from effllava_optuna.tasks.scoring.scores import answer_divergence as answer_divergence
    from effllava_optuna.tasks.scoring.scores import answer_loss as answer_loss
    from effllava_optuna.tasks.scoring.scores import grade_answer as grade_answer
    from effllava_optuna.tasks.scoring.scores import grade_answers as grade_answers
    from effllava_optuna.tasks.scoring.scores import score_logits as score_logits
    from effllava_optuna.tasks.scoring.scores import score_on_device as score_on_device
    from effllava_optuna.tasks.scoring.scores import target_logits as target_logits
    from effllava_optuna.tasks.task import Task as Task
    from effllava_optuna.tasks.task import digest_samples as digest_samples
    from effllava_optuna.tasks.task import require_proxy as require_proxy
    from effllava_optuna.tasks.task import validate_task as validate_task

_MODULES = {
    "AGREEMENT": ".dense_answers",
    "AnsweredQuestion": ".judging.benchmark_judges",
    "Batch": ".prompts",
    "DataTask": ".data.row_task",
    "DenseAnswer": ".sample",
    "DenseAnswers": ".dense_answers",
    "DenseOutputs": ".scoring.agreement",
    "Digits": ".data.digits",
    "GradingRule": ".sample",
    "JudgedScore": ".judging.judgements",
    "OpenAIJudge": ".judging.openai_judge",
    "Sample": ".sample",
    "Scores": ".scoring.scores",
    "Split": ".sample",
    "Task": ".task",
    "TaskOptions": ".schemas",
    "UNLABELLED": ".sample",
    "answer_divergence": ".scoring.scores",
    "answer_loss": ".scoring.scores",
    "answers_from_json": ".dense_answers",
    "answers_to_json": ".dense_answers",
    "count_outputs": ".scoring.agreement",
    "dense_outputs": ".scoring.agreement",
    "digest_samples": ".task",
    "divide_samples": ".prompts",
    "encode_prompts": ".prompts",
    "encode_with_answers": ".prompts",
    "grade_answer": ".scoring.scores",
    "grade_answers": ".scoring.scores",
    "judge_llava_bench": ".judging.benchmark_judges",
    "judge_mmvet": ".judging.benchmark_judges",
    "require_proxy": ".task",
    "score_agreement": ".scoring.agreement",
    "score_logits": ".scoring.scores",
    "score_on_device": ".scoring.scores",
    "target_logits": ".scoring.scores",
    "validate_task": ".task",
    "with_dense_answers": ".dense_answers",
}

__all__ = [*_MODULES]
__getattr__ = lazy_names(__name__, _MODULES)
