"""Questions about pictures of four real handwritten digits.

The digits are scikit-learn's ``load_digits`` (Alpaydin and Kaynak 1998, UCI repository: 1,797
scans of 8 x 8 pixels). The scans are split before anything is made of them: `TRAIN_DIGITS` of
them train the embedded model, the others are all that the splits of this task are made of.

A picture shows four digits, two by two. The held-out scans are dealt into fours; a four is the
independent unit: its scans appear in no other four, hence in no other split.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from effllava_optuna.tasks._task import Sample, Split

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from effllava_optuna.tasks._task import Task

TRAIN_DIGITS = 1400
TARGETS = tuple(str(number) for number in range(19))
CORNERS = ("top left", "top right", "bottom left", "bottom right")
LINES = {
    "top row": (0, 1),
    "bottom row": (2, 3),
    "left column": (0, 2),
    "right column": (1, 3),
}
_FOURS = {Split.PROXY: 32, Split.VALIDATION: 25, Split.TEST: 40}
_DEAL = 1797  # seed of the one split into training and held-out scans


@dataclass(frozen=True, slots=True)
class Scans:
    """Scans of single digits.

    Attributes:
        pixels: Shape ``(scans, 8, 8)``, in [0, 1].
        labels: Shape ``(scans,)``, the digit that each one shows.
    """

    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]


@cache
def scans() -> tuple[Scans, Scans]:
    """Give the scans that train the embedded model, and those it has never seen."""
    from sklearn.datasets import load_digits  # other tasks do without

    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels.reshape(-1, 8, 8) / 16).astype(np.float32)
    order = np.random.default_rng(_DEAL).permutation(len(labels))
    train, held_out = np.split(order, [TRAIN_DIGITS])
    return Scans(pixels[train], labels[train]), Scans(pixels[held_out], labels[held_out])


def ask(
    digits: NDArray[np.int64],
    rng: np.random.Generator,
    shares: tuple[float, float, float, float] | None = None,
) -> tuple[str, int]:
    """Draw a question about ``digits`` and its answer.

    Args:
        digits: Shape ``(4,)``, in reading order.
        rng: Draws.
        shares: Of questions for one digit, a sum, an extreme, a count; None: all the same.
    """
    kind = rng.integers(4) if shares is None else rng.choice(4, p=shares)
    if kind == 0:
        where = int(rng.integers(4))
        return f"what digit is at the {CORNERS[where]}?", int(digits[where])
    if kind == 1:
        line = list(LINES)[rng.integers(4)]
        return f"what is the sum of the {line}?", int(digits[list(LINES[line])].sum())
    if kind == 2:
        word, pick = (("largest", max), ("smallest", min))[rng.integers(2)]
        return f"what is the {word} digit?", int(pick(digits))
    word, remainder = (("even", 0), ("odd", 1))[rng.integers(2)]
    return f"how many digits are {word}?", int((digits % 2 == remainder).sum())


def draw(tiles: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw four ``tiles`` (shape ``(4, 16, 16)``, in [0, 1]) as one picture ``(32, 32, 3)``."""
    grid = tiles.reshape(2, 2, 16, 16).transpose(0, 2, 1, 3).reshape(32, 32)
    return np.repeat((grid * 255).round().astype(np.uint8)[:, :, None], 3, axis=2)


def enlarge(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Enlarge scans ``(n, 8, 8)`` to tiles ``(n, 16, 16)`` by repeating pixels."""
    return pixels.repeat(2, axis=1).repeat(2, axis=2)


@dataclass(frozen=True)
class Digits:
    """The digits task.

    Args:
        seed: Deals the held-out scans into fours and draws the questions.
        proxy: How many proxy samples there are; 64 as in the paper.
        validation: How many validation samples there are.
        test: How many test samples there are.

    Example:
        >>> task = Digits(seed=0)
        >>> sample = task.samples(Split.TEST)[0]
        >>> sample.question, sample.targets[sample.answer]
        ('how many digits are odd?', '3')
    """

    seed: int = 0
    proxy: int = 64
    validation: int = 500
    test: int = 2000

    @property
    def name(self) -> str:
        """Name the task as a study file does."""
        return "digits"

    @cached_property
    def digest(self) -> str:
        """Identify the samples of all splits by content."""
        content = hashlib.sha256()
        for split in Split:
            for sample in self.samples(split):
                picture = sample.picture()
                content.update(b"" if picture is None else picture.tobytes())
                content.update(f"{sample.id} {sample.question} {sample.answer}\n".encode())
        return content.hexdigest()[:16]

    @property
    def chance(self) -> float:
        """Give the accuracy of guessing among the targets, in [0, 1]."""
        return 1 / len(TARGETS)

    def samples(self, split: Split) -> tuple[Sample, ...]:
        """Give the samples of ``split``, always the same ones in the same order."""
        return self._made[split]

    @cached_property
    def _made(self) -> dict[Split, tuple[Sample, ...]]:
        _, held_out = scans()
        dealt = np.random.default_rng([self.seed, 0]).permutation(len(held_out.labels))
        fours = iter(dealt[: len(dealt) // 4 * 4].reshape(-1, 4))
        sizes = {
            Split.PROXY: self.proxy,
            Split.VALIDATION: self.validation,
            Split.TEST: self.test,
        }
        made = {}
        for number, split in enumerate(Split, start=1):
            mine = [next(fours) for _ in range(_FOURS[split])]
            rng = np.random.default_rng([self.seed, number])
            made[split] = tuple(
                _sample(split, index, mine[index % len(mine)], held_out, rng)
                for index in range(sizes[split])
            )
        return made


@dataclass(frozen=True)
class TrainingDigits(Digits):
    """The digits task, its proxy drawn afresh from the scans that trained the embedded model.

    For recovery: a study that calibrates on them would not see how a policy generalises.

    Example:
        >>> task = TrainingDigits(seed=0, proxy=1000)
        >>> len({sample.unit for sample in task.samples(Split.PROXY)})
        1000
    """

    @property
    def name(self) -> str:
        """Name the task as a study file does."""
        return "effllava_optuna.tasks.digits:TrainingDigits"

    def samples(self, split: Split) -> tuple[Sample, ...]:
        """Give the samples of ``split``; validation and test are those of `Digits`."""
        return self._drawn if split is Split.PROXY else super().samples(split)

    @cached_property
    def _drawn(self) -> tuple[Sample, ...]:
        pool, _ = scans()
        rng = np.random.default_rng([self.seed, len(Split) + 1])
        return tuple(
            _sample(
                Split.PROXY, index, rng.choice(len(pool.labels), 4, replace=False), pool, rng,
                unit=f"training-{index:04d}",
            )
            for index in range(self.proxy)
        )  # fmt: skip


def _sample(
    split: Split,
    index: int,
    four: NDArray[np.int64],
    pool: Scans,
    rng: np.random.Generator,
    unit: str | None = None,
) -> Sample:
    placed = rng.permutation(four)
    question, answer = ask(pool.labels[placed], rng)
    return Sample(
        id=f"{split}-{index:04d}",
        unit=unit or f"four-{min(four):03d}",
        split=split,
        image=Image.fromarray(draw(enlarge(pool.pixels[placed]))),
        question=question,
        targets=TARGETS,
        answer=answer,
    )


if TYPE_CHECKING:
    _: tuple[Callable[[], Task], ...] = (Digits, TrainingDigits)
