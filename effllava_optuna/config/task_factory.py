"""Create the task of a study file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.config.checked_functions import UserFunction, checked_task
from effllava_optuna.config.schema import ROWS
from effllava_optuna.config.user_functions import import_function
from effllava_optuna.tasks import (
    DataTask,
    Digits,
    Split,
    TaskOptions,
    grade_answer,
    validate_task,
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
    task = validate_task(make_unchecked_task(config), labels=config.quality.measure == "accuracy")
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
    sizes = {"proxy": settings.proxy, "validation": settings.validation, "test": settings.test}
    if settings.name in ROWS:
        return DataTask(
            schema=settings.name,
            data=settings.data,
            config=settings.config,
            sources={role: split for role, split in settings.splits if split is not None},
            columns=settings.columns,
            options=TaskOptions(
                harness=settings.harness,
                instruction=settings.instruction,
                system=settings.system,
                new_tokens=settings.new_tokens,
                labels=config.quality.measure == "accuracy",
            ),
            seed=config.task_seed,
            **sizes,
        )
    if ":" not in settings.name:
        return Digits(seed=config.task_seed, **sizes)
    create = import_function("task.name", settings.name, config.study.modules)
    function = UserFunction("task.name", settings.name, create)
    return checked_task(function, seed=config.task_seed, **sizes)
