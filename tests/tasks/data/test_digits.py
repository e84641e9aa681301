"""The digits task, checked against scikit-learn's scans and the text of the questions."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.datasets import load_digits

from effllava_optuna.tasks import Digits, Sample, Split, validate_task
from effllava_optuna.tasks.data.digits import TRAIN_DIGITS, TrainingDigits, load_scans

if TYPE_CHECKING:
    from numpy.typing import NDArray

PLACES = {"top left": 0, "top right": 1, "bottom left": 2, "bottom right": 3}

SplitScans = dict[Split, list[list[bytes]]]


@pytest.fixture(scope="module")
def task() -> Digits:
    return Digits(seed=0)


@pytest.fixture(scope="module")
def scans_of_samples(task: Digits) -> SplitScans:
    """The scans in the images of `task`, by split and sample."""
    return {split: [tiles(sample) for sample in task.samples(split)] for split in Split}


def key(scan: NDArray[np.float64]) -> bytes:
    """Return the pixels of a scan (``(8, 8)``, 0 to 16) as a key."""
    return np.round(scan).astype(np.uint8).tobytes()


def tiles(sample: Sample) -> list[bytes]:
    """Extract the four scans from an image, in reading order."""
    image = np.asarray(sample.image)
    assert image.shape == (32, 32, 3)
    assert (image == image[:, :, :1]).all()
    small = image[::2, ::2, 0]
    assert (small.repeat(2, 0).repeat(2, 1) == image[:, :, 0]).all()
    return [key(small[y : y + 8, x : x + 8] / 255 * 16) for y in (0, 8) for x in (0, 8)]


def labels() -> dict[bytes, int]:
    """Return the digit of each scan, from scikit-learn."""
    pixels, targets = load_digits(return_X_y=True)
    return {
        key(scan): int(label)
        for scan, label in zip(pixels.reshape(-1, 8, 8), targets, strict=True)
    }


def correct_answer(question: str, digits: list[int]) -> int:
    """Answer ``question`` about four digits, in reading order."""
    if match := re.fullmatch(r"what digit is at the (\w+ \w+)\?", question):
        return digits[PLACES[match[1]]]
    if match := re.fullmatch(r"what is the sum of the (\w+) (?:row|column)\?", question):
        return sum(digits[place] for name, place in PLACES.items() if match[1] in name)
    if match := re.fullmatch(r"what is the (largest|smallest) digit\?", question):
        return sorted(digits)[-1 if match[1] == "largest" else 0]
    if match := re.fullmatch(r"how many digits are (even|odd)\?", question):
        odd = sum(digit % 2 for digit in digits)
        return odd if match[1] == "odd" else 4 - odd
    raise AssertionError(question)


def test_the_splits_have_their_sizes_and_ids_are_unique(task: Digits) -> None:
    assert [len(task.samples(split)) for split in Split] == [64, 500, 2000]
    samples = [sample for split in Split for sample in task.samples(split)]
    assert len({sample.id for sample in samples}) == len(samples)
    assert all(sample.split is split for split in Split for sample in task.samples(split))


def test_splits_share_no_group_and_no_scan_and_have_no_training_scan(
    task: Digits, scans_of_samples: SplitScans
) -> None:
    train, held_out = load_scans()
    trained = {key(scan * 16) for scan in train.pixels}
    assert (len(train.labels), len(held_out.labels)) == (TRAIN_DIGITS, 1797 - TRAIN_DIGITS)
    seen = {split: {tile for four in scans_of_samples[split] for tile in four} for split in Split}
    groups = {split: {s.group for s in task.samples(split)} for split in Split}
    for first, second in combinations(Split, 2):
        assert not seen[first] & seen[second]
        assert not groups[first] & groups[second]
    assert not trained & set().union(*seen.values())


def test_groups_share_no_scan(task: Digits, scans_of_samples: SplitScans) -> None:
    scans_of: dict[str, set[bytes]] = {}
    for split in Split:
        for sample, four in zip(task.samples(split), scans_of_samples[split], strict=True):
            scans_of.setdefault(sample.group, set()).update(four)
    assert all(len(four) == 4 for four in scans_of.values())
    assert len(set().union(*scans_of.values())) == 4 * len(scans_of)


def test_every_answer_is_correct(task: Digits, scans_of_samples: SplitScans) -> None:
    digit_of = labels()
    for split in Split:
        for sample, four in zip(task.samples(split), scans_of_samples[split], strict=True):
            digits = [digit_of[tile] for tile in four]
            assert sample.correct_answer == str(correct_answer(sample.question, digits))


def test_the_same_seed_gives_the_same_samples_and_another_seed_others() -> None:
    few = Digits(seed=0, validation=50, test=100)
    assert replace(few).digest == few.digest
    assert replace(few, seed=1).digest != few.digest
    assert replace(few, proxy=32).digest != few.digest


def test_a_smaller_split_is_a_prefix_of_a_larger_one(task: Digits) -> None:
    few = Digits(seed=0, proxy=16, test=10)
    for split in (Split.PROXY, Split.TEST):
        prefix, full = few.samples(split), task.samples(split)
        assert [s.id for s in prefix] == [s.id for s in full[: len(prefix)]]
        assert [s.question for s in prefix] == [s.question for s in full[: len(prefix)]]


def test_training_digits_replace_the_proxy_only_by_training_scans() -> None:
    task = Digits(seed=0, proxy=100, validation=5, test=5)
    fresh = TrainingDigits(seed=0, proxy=100, validation=5, test=5)
    train, _ = load_scans()
    trained = {key(scan * 16) for scan in train.pixels}
    digit_of = labels()
    for sample in fresh.samples(Split.PROXY):
        four = tiles(sample)
        assert trained >= set(four)
        assert len(set(four)) == 4
        expected = correct_answer(sample.question, [digit_of[tile] for tile in four])
        assert sample.correct_answer == str(expected)
    for split in (Split.VALIDATION, Split.TEST):
        assert [s.id for s in fresh.samples(split)] == [s.id for s in task.samples(split)]
    assert validate_task(fresh).digest != task.digest
