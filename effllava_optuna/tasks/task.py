"""The interface of a task, and checks of its splits."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

from effllava_optuna.errors import LeakError, TaskError
from effllava_optuna.tasks.sample import Split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.tasks.sample import Sample


WITHOUT_ANSWERS = 'quality.measure = "agreement"'  # in the study file of unlabelled data


class Task(Protocol):
    """A source of samples in three splits: a benchmark, or the user's own data."""

    @property
    def name(self) -> str:
        """Return the name of the task in a study file."""

    @property
    def digest(self) -> str:
        """Return a hash of the samples of all splits."""

    @property
    def chance(self) -> float:
        """Return the accuracy of random guessing in [0, 1]; 0 for open-ended questions."""

    def samples(self, split: Split) -> tuple[Sample, ...]:
        """Return the samples of ``split``, the same ones in the same order at every call."""


def digest_samples(samples: Sequence[Sample]) -> str:
    """Hash the ids, groups, questions and answers of samples, but not their images."""
    content = hashlib.sha256()
    for sample in samples:
        fields = (sample.id, sample.group, sample.question, sample.targets, sample.answer)
        content.update(repr(fields).encode())
    return content.hexdigest()[:16]


def validate_task(task: Task, *, labels: bool = True) -> Task:
    """Check the splits of a task, and return the task.

    Args:
        task: The task.
        labels: Whether every sample must have a correct answer.

    Raises:
        TaskError: A split is empty, an id occurs twice, a sample has no answer, or two splits
            share a group.
    """
    split_of_group: dict[str, Split] = {}
    ids: set[str] = set()
    for split in Split:
        if not task.samples(split):
            raise TaskError(
                f"Task {task.name!r} has no {split} samples.",
                hint="Add rows about other images, or lower the other sizes in [task].",
            )
        for sample in task.samples(split):
            if sample.id in ids:
                raise TaskError(
                    f"Task {task.name!r} has two samples with the id {sample.name}.",
                    hint="Use a different id for each row.",
                )
            ids.add(sample.id)
            if labels and not sample.correct_answer:
                raise TaskError(
                    f"Task {task.name!r}: {split} sample {sample.name} has no answer.",
                    hint=f"Draw the {split} split from rows that have answers, or set "
                    f"{WITHOUT_ANSWERS}, which needs none.",
                )
            if split_of_group.setdefault(sample.group, split) is not split:
                raise TaskError(
                    f"Task {task.name!r}: group {sample.group!r} is in "
                    f"{split_of_group[sample.group]} and in {split}.",
                    hint="Put all samples about one image into the same split.",
                )
    return task


def require_proxy(samples: Sequence[Sample], receiver: str) -> tuple[Sample, ...]:
    """Return ``samples`` after a check that all of them belong to the proxy split.

    Args:
        samples: The samples.
        receiver: What receives the samples, for the message; for example ``"Calibration"``.

    Raises:
        LeakError: A sample belongs to validation or test.
    """
    for sample in samples:
        if sample.split is not Split.PROXY:
            raise LeakError(
                f"{receiver} was given {sample.split} sample {sample.name}.",
                hint="Calibration, search and projector training use the proxy split only.",
            )
    return tuple(samples)
