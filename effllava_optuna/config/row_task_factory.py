"""Create the task of a study file whose samples are rows; without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import DataTask, Split, TaskOptions, validate_task

if TYPE_CHECKING:
    from effllava_optuna.tasks import Task


def make_row_task(config: StudyConfig, *, open_images: bool = True) -> DataTask:
    """Create the task of a study whose samples are rows of a dataset.

    Args:
        config: A study file whose task reads rows.
        open_images: See `DataTask`.
    """
    settings = config.task
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
        proxy=settings.proxy,
        validation=settings.validation,
        test=settings.test,
        open_images=open_images,
    )


def check_task(config: StudyConfig, task: Task) -> Task:
    """Check that a study can be made of the samples of a task, and return the task.

    Raises:
        TaskError: A split is empty, an id occurs twice, a sample has no answer, two splits share
            a group, or the proxy set has fewer groups than folds.
    """
    if isinstance(task, DataTask):
        task.require_splits()
    validate_task(task, labels=config.quality.measure == "accuracy")
    proxy, folds = task.samples(Split.PROXY), config.pruning.folds
    groups = {sample.group for sample in proxy}
    if len(groups) < folds:
        pictures = "1 picture" if len(groups) == 1 else f"{len(groups)} pictures"
        raise TaskError(
            f"Task {task.name!r}: the {len(proxy)} proxy samples are about {pictures}, "
            f"but pruning.folds = {folds} needs {folds} different ones.",
            hint="Add rows about other images, or raise task.proxy.",
        )
    return task


def with_task_sizes(config: StudyConfig, task: Task) -> StudyConfig:
    """Return a study file that sets the sizes of all splits.

    Args:
        config: The study file.
        task: Its task, whose rows determine sizes that the file does not set.
    """
    sizes = task.sizes if isinstance(task, DataTask) else config.task.sizes
    numbers = {str(split): size for split, size in sizes.items()}
    table = config.task.model_copy(update=numbers)
    return config.model_copy(update={"task": table})
