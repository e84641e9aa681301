"""Questions about images of four real handwritten digits.

The digits are scikit-learn's ``load_digits`` (Alpaydin and Kaynak 1998, UCI repository: 1,797
scans of 8 x 8 pixels). The scans are split first: `TRAIN_DIGITS` of them train the embedded
model, and the samples of this task use the others only.

An image shows four digits, two by two. The held-out scans are divided into sets of four, and a
set is the group of a sample: no other set has one of its scans, hence no other split.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from effllava_optuna.tasks.sample import Sample, Split

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from effllava_optuna.tasks.task import Task

TRAIN_DIGITS = 1400
TARGETS = tuple(str(number) for number in range(19))
CORNERS = ("top left", "top right", "bottom left", "bottom right")
LINES = {
    "top row": (0, 1),
    "bottom row": (2, 3),
    "left column": (0, 2),
    "right column": (1, 3),
}
_N_GROUPS = {Split.PROXY: 32, Split.VALIDATION: 25, Split.TEST: 40}
_SCAN_SEED = 1797  # seed of the one division into training and held-out scans


@dataclass(frozen=True, slots=True)
class DigitScans:
    """Scans of single digits.

    Attributes:
        pixels: Shape ``(scans, 8, 8)``, in [0, 1].
        labels: Shape ``(scans,)``, the digit in each scan.
    """

    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]


@cache
def load_scans() -> tuple[DigitScans, DigitScans]:
    """Return the scans that train the embedded model, and the held-out scans."""
    from sklearn.datasets import load_digits  # not needed by other tasks

    pixels, labels = load_digits(return_X_y=True)
    pixels = (pixels.reshape(-1, 8, 8) / 16).astype(np.float32)
    order = np.random.default_rng(_SCAN_SEED).permutation(len(labels))
    train, held_out = np.split(order, [TRAIN_DIGITS])
    return DigitScans(pixels[train], labels[train]), DigitScans(pixels[held_out], labels[held_out])


def draw_question(
    digits: NDArray[np.int64],
    rng: np.random.Generator,
    probabilities: tuple[float, float, float, float] | None = None,
) -> tuple[str, int]:
    """Draw a question about ``digits``, and return it with its answer.

    Args:
        digits: Shape ``(4,)``, in reading order.
        rng: Random generator.
        probabilities: Of questions about one digit, a sum, an extreme, a count; None: uniform.
    """
    kind = rng.integers(4) if probabilities is None else rng.choice(4, p=probabilities)
    if kind == 0:
        corner = int(rng.integers(4))
        return f"what digit is at the {CORNERS[corner]}?", int(digits[corner])
    if kind == 1:
        line = list(LINES)[rng.integers(4)]
        return f"what is the sum of the {line}?", int(digits[list(LINES[line])].sum())
    if kind == 2:
        word, select = (("largest", max), ("smallest", min))[rng.integers(2)]
        return f"what is the {word} digit?", int(select(digits))
    word, remainder = (("even", 0), ("odd", 1))[rng.integers(2)]
    return f"how many digits are {word}?", int((digits % 2 == remainder).sum())


def render_tiles(tiles: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Combine four ``tiles`` (shape ``(4, 16, 16)``, in [0, 1]) into one image ``(32, 32, 3)``."""
    grid = tiles.reshape(2, 2, 16, 16).transpose(0, 2, 1, 3).reshape(32, 32)
    return np.repeat((grid * 255).round().astype(np.uint8)[:, :, None], 3, axis=2)


def upscale(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Enlarge scans ``(n, 8, 8)`` to tiles ``(n, 16, 16)`` by repeating pixels."""
    return pixels.repeat(2, axis=1).repeat(2, axis=2)


@dataclass(frozen=True)
class Digits:
    """The digits task.

    Args:
        seed: Seed of the division of held-out scans into groups, and of the questions.
        proxy: Number of proxy samples; 64 as in the paper.
        validation: Number of validation samples.
        test: Number of test samples.

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
        """Return the name of the task in a study file."""
        return "digits"

    @cached_property
    def digest(self) -> str:
        """Return a hash of the samples of all splits, with their images."""
        content = hashlib.sha256()
        for split in Split:
            for sample in self.samples(split):
                image = sample.load_image()
                content.update(b"" if image is None else image.tobytes())
                content.update(f"{sample.id} {sample.question} {sample.answer}\n".encode())
        return content.hexdigest()[:16]

    @property
    def chance(self) -> float:
        """Return the accuracy of random guessing, in [0, 1]."""
        return 1 / len(TARGETS)

    def samples(self, split: Split) -> tuple[Sample, ...]:
        """Return the samples of ``split``, the same ones in the same order at every call."""
        return self._samples[split]

    @cached_property
    def _samples(self) -> dict[Split, tuple[Sample, ...]]:
        _, held_out = load_scans()
        order = np.random.default_rng([self.seed, 0]).permutation(len(held_out.labels))
        scans_of_groups = iter(order[: len(order) // 4 * 4].reshape(-1, 4))
        sizes = {
            Split.PROXY: self.proxy,
            Split.VALIDATION: self.validation,
            Split.TEST: self.test,
        }
        samples = {}
        for number, split in enumerate(Split, start=1):
            groups = [next(scans_of_groups) for _ in range(_N_GROUPS[split])]
            rng = np.random.default_rng([self.seed, number])
            samples[split] = tuple(
                _draw_sample(split, index, groups[index % len(groups)], held_out, rng)
                for index in range(sizes[split])
            )
        return samples


@dataclass(frozen=True)
class TrainingDigits(Digits):
    """The digits task with a proxy from the scans that trained the embedded model.

    Use it for recovery only: a study that calibrates on training scans cannot measure how well a
    policy generalises.

    Example:
        >>> task = TrainingDigits(seed=0, proxy=1000)
        >>> len({sample.group for sample in task.samples(Split.PROXY)})
        1000
    """

    @property
    def name(self) -> str:
        """Return the name of the task in a study file."""
        return "effllava_optuna.tasks.data.digits:TrainingDigits"

    def samples(self, split: Split) -> tuple[Sample, ...]:
        """Return the samples of ``split``; validation and test are those of `Digits`."""
        return self._training_samples if split is Split.PROXY else super().samples(split)

    @cached_property
    def _training_samples(self) -> tuple[Sample, ...]:
        train, _ = load_scans()
        rng = np.random.default_rng([self.seed, len(Split) + 1])
        samples = []
        for index in range(self.proxy):
            scans = rng.choice(len(train.labels), 4, replace=False)
            sample = _draw_sample(Split.PROXY, index, scans, train, rng)
            samples.append(replace(sample, group=f"training-{index:04d}"))
        return tuple(samples)


def _draw_sample(
    split: Split, index: int, scans: NDArray[np.int64], pool: DigitScans, rng: np.random.Generator
) -> Sample:
    """Draw the positions of four scans and a question about them."""
    placed = rng.permutation(scans)
    question, answer = draw_question(pool.labels[placed], rng)
    return Sample(
        id=f"{split}-{index:04d}",
        group=f"four-{min(scans):03d}",
        split=split,
        image=Image.fromarray(render_tiles(upscale(pool.pixels[placed]))),
        question=question,
        targets=TARGETS,
        answer=answer,
    )


if TYPE_CHECKING:
    _: tuple[Callable[[], Task], ...] = (Digits, TrainingDigits)
