"""What a task is: samples in three splits that never share a unit."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from effllava_optuna.errors import LeakError, TaskError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Split(StrEnum):
    """The three roles that samples can have; one sample has one role."""

    PROXY = "proxy"
    VALIDATION = "validation"
    TEST = "test"


class Stored(Protocol):
    """A picture that stays where it is stored until somebody looks at it."""

    def open(self) -> Image.Image:
        """Open it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How an answer that a model wrote is graded.

    Attributes:
        name: Printed beside every score: the benchmark's metric and its harness, or a proxy.
        grade: Gives a share in [0, 1] for a sample and the text that was written.
        new_tokens: The most tokens that are written.
        constant: An answer that scores well whatever is asked; its score is printed, too.
    """

    name: str
    grade: Callable[[Sample, str], float]
    new_tokens: int = 16
    constant: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One question, about a picture or about nothing but its text.

    A closed question lists its possible answers, of which one is right. An open one (``answer``
    is None) lists texts that would be right, the best first, and says by which rule an answer is
    graded.

    Attributes:
        id: Unique within the task.
        unit: The independent unit it comes from; folds and bootstraps keep units whole.
        split: Its role.
        image: The picture; whatever its mode, the model is shown it as RGB. None: there is none.
        question: The text of the user's turn.
        targets: What the answer may be; each is what the assistant's turn would begin with.
        answer: Index of the right one in ``targets``; None: the question is open.
        rule: Grades a written answer; open questions have one.
        subsets: Parts of the task that it belongs to, for tables.
        system: The text of the system's turn; none if empty.
        context: What a judge is told that the picture shows; the model never is.
    """

    id: str
    unit: str
    split: Split
    image: Image.Image | Stored | None
    question: str
    targets: tuple[str, ...]
    answer: int | None = None
    rule: Rule | None = None
    subsets: tuple[str, ...] = ()
    system: str = ""
    context: str = ""

    def __post_init__(self) -> None:
        if self.answer is None:
            if self.rule is None:
                raise TaskError(
                    f"Sample {self.id!r} is an open question without a rule to grade it by.",
                    hint="Give a rule, or possible answers and the index of the right one.",
                )
        elif len(self.targets) < 2 or not 0 <= self.answer < len(self.targets):
            raise TaskError(
                f"Sample {self.id!r} has {len(self.targets)} possible answers, of which number "
                f"{self.answer} is right.",
                hint="Give at least two possible answers, and count the right one from 0.",
            )

    @property
    def open(self) -> bool:
        """Tell whether any text may be an answer."""
        return self.answer is None

    @property
    def right(self) -> str:
        """Give the right answer, of an open question the best one; empty where none is known."""
        return self.targets[self.answer or 0] if self.targets else ""

    def picture(self) -> Image.Image | None:
        """Give the picture as RGB; None where there is none.

        Raises:
            TaskError: It cannot be opened, or has no pixels.
        """
        if self.image is None:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                found = self.image if isinstance(self.image, Image.Image) else self.image.open()
                if all(found.size):
                    return _eight_bits(found).convert("RGB")
        except (
            OSError, SyntaxError, ValueError, TypeError,
            Image.DecompressionBombError, Image.DecompressionBombWarning,
        ) as error:  # fmt: skip
            raise TaskError(
                f"The picture of sample {self.id!r} cannot be opened: {str(error).rstrip('.')}.",
                hint="Replace the file, or drop the row.",
            ) from error
        raise TaskError(
            f"Sample {self.id!r} has a picture of {found.size} pixels.",
            hint="Give the picture that the question is about, or drop the row.",
        )


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Halve the depth of 16-bit greys: `convert` makes all above 255 white."""
    if not picture.mode.startswith("I;16"):
        return picture
    pixels = np.asarray(picture)
    return picture if pixels.max() < 256 else Image.fromarray((pixels >> 8).astype(np.uint8))


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
        """Give the accuracy of guessing among the targets, in [0, 1]; 0 for open questions."""

    def samples(self, split: Split) -> tuple[Sample, ...]:
        """Give the samples of ``split``, always the same ones in the same order."""


def digest_of(samples: Sequence[Sample]) -> str:
    """Identify samples by what is asked, about which unit, and what is right."""
    content = hashlib.sha256()
    for sample in samples:
        told = (sample.id, sample.unit, sample.question, sample.targets, sample.answer)
        content.update(repr(told).encode())
    return content.hexdigest()[:16]


def checked(task: Task) -> Task:
    """Give ``task`` back if its ids are unique, and its splits share no unit and have answers.

    Raises:
        TaskError: It is not so.
    """
    owner: dict[str, Split] = {}
    ids: set[str] = set()
    for split in Split:
        if not task.samples(split):
            raise TaskError(
                f"Task {task.name!r} has no {split} samples.",
                hint="Give it more rows about other pictures, or lower the other sizes in [task].",
            )
        for sample in task.samples(split):
            if sample.id in ids:
                raise TaskError(
                    f"Task {task.name!r} has two samples with the id {sample.id!r}.",
                    hint="Give each row an id of its own.",
                )
            ids.add(sample.id)
            if not sample.right:
                raise TaskError(
                    f"Task {task.name!r}: {split} sample {sample.id!r} has no answer.",
                    hint="Draw that split from rows that have answers.",
                )
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
