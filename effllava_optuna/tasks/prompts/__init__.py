"""Conversion of samples to prompts and tensors."""

from effllava_optuna.tasks.prompts.batch import IGNORE_INDEX, Batch
from effllava_optuna.tasks.prompts.chat_prompt import (
    append_answer,
    build_model_inputs,
    format_prompt,
    require_answers_last,
)
from effllava_optuna.tasks.prompts.sample_encoding import (
    divide_samples,
    encode_prompts,
    encode_with_answers,
)

__all__ = [
    "IGNORE_INDEX",
    "Batch",
    "append_answer",
    "build_model_inputs",
    "divide_samples",
    "encode_prompts",
    "encode_with_answers",
    "format_prompt",
    "require_answers_last",
]
