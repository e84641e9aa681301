"""A sample: one question, its image, its possible answers and the split that it belongs to."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from effllava_optuna.errors import TaskError, shorten
from effllava_optuna.tasks.rgb_conversion import convert_to_rgb

if TYPE_CHECKING:
    from collections.abc import Callable


UNLABELLED = -1
"""Index of the correct answer of a closed question if it is not known."""


class Split(StrEnum):
    """The three splits of a task; a sample belongs to exactly one of them."""

    PROXY = "proxy"
    VALIDATION = "validation"
    TEST = "test"


class ImageSource(Protocol):
    """An image that is decoded only when it is opened."""

    def open(self) -> Image.Image:
        """Open the image."""


@dataclass(frozen=True, slots=True)
class GradingRule:
    """How an answer that a model generated is graded.

    Attributes:
        name: Printed beside every score: the metric of a benchmark and its harness, or a proxy.
        grade: Returns a score in [0, 1] for a sample and the generated text.
        new_tokens: Largest number of tokens that the model generates.
        baseline_answer: A constant answer that scores well on many samples. Reports print its
            score, too. None: there is no such answer.

    Raises:
        TaskError: ``new_tokens`` is not a whole number of at least 1.
    """

    name: str
    grade: Callable[[Sample, str], float]
    new_tokens: int = 16
    baseline_answer: str | None = None

    def __post_init__(self) -> None:
        tokens = self.new_tokens
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise TaskError(
                f"Rule {shorten(self.name)} has new_tokens = {shorten(tokens)}.",
                hint="Use a whole number of at least 1.",
            )


@dataclass(frozen=True, slots=True)
class DenseAnswer:
    """The greedy answer of the dense model to one question.

    Attributes:
        text: The generated text, which may be empty; of an open-ended question.
        option: Index of the most likely option of a closed question; None: it is open-ended.
        truncated: Whether the text was cut at the largest number of tokens, so that no end token
            follows it.
    """

    text: str = ""
    option: int | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One question, with or without an image.

    A closed question lists its possible answers, exactly one of which is correct. An open-ended
    question (``answer`` is None) lists correct texts, the best one first, and has a grading rule.

    Attributes:
        id: Unique within the task.
        group: Samples that share an image have the same group. Splits, folds and bootstrap
            resamples contain whole groups.
        split: The split of the task that the sample belongs to.
        image: The image in any mode; the model receives it as RGB, see `convert_to_rgb`. None: no
            image.
        question: Text of the user turn.
        targets: The possible answers, or the correct texts of an open-ended question. Each is
            the beginning of the assistant turn.
        answer: Index of the correct answer in ``targets``, `UNLABELLED` if it is not known; None:
            the question is open-ended, and not labelled if ``targets`` is empty.
        rule: Grades a generated answer; required for open-ended questions.
        subsets: Subsets of the task that contain the sample, for tables by subset.
        system: Text of the system turn; empty: no system turn.
        context: Description of the image for a judge. The model does not receive it.
        dense: The answer of the dense model, if it takes the place of a correct one.
        place: Where its row is stored, for messages; empty: not known.

    Raises:
        TaskError: A field has another type or is not valid Unicode, an open-ended question has no
            rule, or a closed one has fewer than two possible answers or an index outside them.
    """

    id: str
    group: str
    split: Split
    image: Image.Image | ImageSource | None
    question: str
    targets: tuple[str, ...]
    answer: int | None = None
    rule: GradingRule | None = None
    subsets: tuple[str, ...] = ()
    system: str = ""
    context: str = ""
    dense: DenseAnswer | None = None
    place: str = ""

    def __post_init__(self) -> None:
        self._require_types()
        if self.answer is None:
            if self.rule is None:
                raise TaskError(
                    f"Sample {shorten(self.id)} is an open-ended question without a grading rule.",
                    hint="Set `rule`, or list possible answers and the index of the correct one.",
                )
        elif len(self.targets) < 2 or not UNLABELLED <= self.answer < len(self.targets):
            raise TaskError(
                f"Sample {shorten(self.id)} has {len(self.targets)} possible answers, and the "
                f"index of the correct one is {self.answer}.",
                hint="List at least two possible answers, and count from 0.",
            )

    def _require_types(self) -> None:
        """Refuse values of other types, which a function of the user may have."""
        for name in ("id", "group", "question", "system", "context"):
            if not isinstance(getattr(self, name), str):
                raise self._type_error(name, "a text")
        for name in ("targets", "subsets"):
            values = getattr(self, name)
            is_sequence = isinstance(values, (tuple, list))
            if not is_sequence or not all(isinstance(text, str) for text in values):
                raise self._type_error(name, "a tuple of texts")
        for name in ("question", "targets", "system"):
            try:
                "".join(getattr(self, name)).encode()
            except UnicodeEncodeError as error:  # half of a surrogate pair
                raise self._type_error(name, "valid Unicode") from error
        is_index = hasattr(self.answer, "__index__") and not isinstance(self.answer, bool)
        if self.answer is not None and not is_index:
            raise self._type_error("answer", "an index")
        has_source = hasattr(self.image, "open") and not isinstance(self.image, Path)
        if self.image is not None and not isinstance(self.image, Image.Image) and not has_source:
            raise self._type_error("image", "a picture of Pillow or an `ImageSource`")
        if self.rule is not None and not isinstance(self.rule, GradingRule):
            raise self._type_error("rule", "a GradingRule")

    def _type_error(self, name: str, kind: str) -> TaskError:
        return TaskError(
            f"Sample {shorten(self.id)}: {name} is {shorten(getattr(self, name))}, which is not "
            f"{kind}.",
            hint="Fix the function that returns the sample.",
        )

    @property
    def name(self) -> str:
        """Return the id, and where the row is stored, for messages."""
        return f"{shorten(self.id)} ({self.place})" if self.place else shorten(self.id)

    @property
    def is_open_ended(self) -> bool:
        """Return whether the question has no list of possible answers."""
        return self.answer is None

    @property
    def is_labelled(self) -> bool:
        """Return whether a correct answer is known."""
        return self.answer != UNLABELLED and bool(self.targets)

    @property
    def correct_answer(self) -> str:
        """Return the correct answer, the best one of several; empty if none is known."""
        return self.targets[self.answer or 0] if self.is_labelled else ""

    def load_image(self) -> Image.Image | None:
        """Return the image as `convert_to_rgb` does; None if there is none.

        Raises:
            TaskError: The image cannot be opened, or has no pixels.
        """
        if self.image is None:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about damaged metadata
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = self.image if isinstance(self.image, Image.Image) else self.image.open()
                if not isinstance(image, Image.Image):
                    raise TypeError(f"its source opens {shorten(image)}, which is not a picture")
                if all(image.size):
                    return convert_to_rgb(image)
        except Exception as error:  # a format of Pillow may raise anything for a damaged file
            reason = str(error).rstrip(".") or type(error).__name__
            name = getattr(self.image, "name", "")  # of a file that a row names
            raise TaskError(
                f"The image{name and f' {shorten(name)}'} of sample {self.name} cannot be opened: "
                f"{reason}.",
                hint="Replace the file, or remove the row.",
            ) from error
        raise TaskError(
            f"The image of sample {self.name} has the size {image.size}.",
            hint="Replace it by an image with pixels, or remove the row.",
        )
