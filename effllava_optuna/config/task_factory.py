"""Create the task of a study file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.config.checked_functions import UserFunction, checked_task
from effllava_optuna.config.row_task_factory import check_task, make_row_task
from effllava_optuna.config.schema import ROWS
from effllava_optuna.config.user_functions import import_function
from effllava_optuna.tasks import (
    Digits,
    Split,
    grade_answer,
)

if TYPE_CHECKING:
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.tasks import Task


def make_task(config: StudyConfig) -> Task:
    """Create the task of a study, and check that it can be searched.

    Raises:
        ConfigError: ``task.name`` is a function that cannot be imported or returns no task.
        TaskError: The data cannot be read, rows cannot be used, two splits share a group, or a
            rule does not grade.
    """
    task = check_task(config, make_unchecked_task(config))
    for split in Split:  # one sample of each rule: before the search, which grades the rest
        samples = {id(s.rule): s for s in task.samples(split) if s.correct_answer}
        for sample in samples.values():
            if sample.rule is not None:
                grade_answer(sample, sample.correct_answer)
    return task


def make_unchecked_task(config: StudyConfig) -> Task:
    """Create the task of a study; its rows may have no answers.

    Raises:
        ConfigError: ``task.name`` is a function that cannot be imported or returns no task.
        TaskError: The data cannot be read, or rows cannot be used.
    """
    settings = config.task
    if settings.name in ROWS:
        return make_row_task(config)
    sizes = {str(split): size for split, size in settings.sizes.items()}
    if ":" not in settings.name:
        return Digits(seed=config.task_seed, **sizes)
    create = import_function("task.name", settings.name, config.study.modules)
    function = UserFunction("task.name", settings.name, create)
    return checked_task(function, seed=config.task_seed, **sizes)
