"""The task that a study names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.study.functions import function_of
from effllava_optuna.study.spec import ROWS
from effllava_optuna.tasks import DataTask, Digits, Options, checked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from effllava_optuna.study.spec import StudySpec, TaskTable
    from effllava_optuna.tasks import Task


def task_of(spec: StudySpec) -> Task:
    """Make the task that a spec names, fit for a study.

    Raises:
        SpecError: It names a function that cannot be imported.
        TaskError: There are no such data, rows of them cannot be used, or two splits share a unit.
    """
    return checked(unchecked(spec))


def unchecked(spec: StudySpec) -> Task:
    """Make the task that a spec names; there may be rows without answers.

    Raises:
        SpecError: It names a function that cannot be imported.
        TaskError: There are no such data, or rows of them cannot be used.
    """
    table = spec.task
    sizes = {"proxy": table.proxy, "validation": table.validation, "test": table.test}
    if table.name in ROWS:
        return _of_rows(table, spec.task_seed, sizes)
    build: Callable[..., Task] = Digits
    if ":" in table.name:
        build = function_of("task.name", table.name)
    return build(seed=spec.task_seed, **sizes)


def _of_rows(table: TaskTable, seed: int, sizes: Mapping[str, int]) -> DataTask:
    options = Options(table.harness, table.instruction, table.system, table.new_tokens)
    sources = {role: name for role, name in table.splits if name is not None}
    return DataTask(
        table.name, table.data, table.config, sources, table.columns, options, seed, **sizes
    )
