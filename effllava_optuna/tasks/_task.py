"""What a task is: samples in three splits that never share a unit."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from effllava_optuna.errors import LeakError, TaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image


class Split(StrEnum):
    """The three roles that samples can have; one sample has one role."""

    PROXY = "proxy"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one picture.

    Attributes:
        id: Unique within the task.
        unit: The independent unit it comes from; folds and bootstraps keep units whole.
        split: Its role.
        image: The picture; whatever its mode, the model is shown it as RGB.
        question: The text of the user's turn.
        targets: What the answer may be; each is what the assistant's turn would begin with.
        answer: Index of the right one in ``targets``.
    """

    id: str
    unit: str
    split: Split
    image: Image
    question: str
    targets: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if len(self.targets) < 2 or not 0 <= self.answer < len(self.targets):
            raise TaskError(
                f"Sample {self.id!r} has {len(self.targets)} possible answers, of which number "
                f"{self.answer} is right.",
                hint="Give at least two possible answers, and count the right one from 0.",
            )


class Task(Protocol):
    """A source of samples; every benchmark and the user's own data stand behind it."""

    @property
    def name(self) -> str:
        """Name the task as a study file does."""

    @property
    def digest(self) -> str:
        """Identify the samples of all splits by content."""

    @property
    def chance(self) -> float:
        """Give the accuracy of guessing among the targets, in [0, 1]."""

    def samples(self, split: Split) -> tuple[Sample, ...]:
        """Give the samples of ``split``, always the same ones in the same order."""


def checked(task: Task) -> Task:
    """Give ``task`` back if no unit is in two of its splits, and no split is empty.

    Raises:
        TaskError: One is.
    """
    owner: dict[str, Split] = {}
    for split in Split:
        if not task.samples(split):
            raise TaskError(
                f"Task {task.name!r} has no {split} samples.", hint="Give every split some."
            )
        for sample in task.samples(split):
            if owner.setdefault(sample.unit, split) is not split:
                raise TaskError(
                    f"Task {task.name!r}: unit {sample.unit!r} is in {owner[sample.unit]} and in "
                    f"{split}.",
                    hint="Give each picture to one split only.",
                )
    return task


def proxy_only(samples: Sequence[Sample], who: str) -> tuple[Sample, ...]:
    """Give ``samples`` back if all of them are proxy samples.

    Raises:
        LeakError: One of them belongs to validation or test.
    """
    for sample in samples:
        if sample.split is not Split.PROXY:
            raise LeakError(
                f"{who} was given {sample.split} sample {sample.id!r}.",
                hint="Calibration, search and projector training use the proxy split only.",
            )
    return tuple(samples)
