"""The digits task, recomputed from scikit-learn's scans and the text of the questions."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.datasets import load_digits

from effllava_optuna.tasks import Digits, Sample, Split, checked
from effllava_optuna.tasks.digits import TRAIN_DIGITS, TrainingDigits, scans

if TYPE_CHECKING:
    from numpy.typing import NDArray

PLACES = {"top left": 0, "top right": 1, "bottom left": 2, "bottom right": 3}


@pytest.fixture(scope="module")
def task() -> Digits:
    return Digits(seed=0)


@pytest.fixture(scope="module")
def shown(task: Digits) -> dict[Split, list[list[bytes]]]:
    """The scans in the pictures of `task`, by split and sample."""
    return {split: [tiles(sample) for sample in task.samples(split)] for split in Split}


def key(scan: NDArray[np.float64]) -> bytes:
    """Name a scan (``(8, 8)``, 0 to 16) by what it looks like."""
    return np.round(scan).astype(np.uint8).tobytes()


def tiles(sample: Sample) -> list[bytes]:
    """Cut the four scans out of a picture again, in reading order."""
    picture = np.asarray(sample.image)
    assert picture.shape == (32, 32, 3)
    assert (picture == picture[:, :, :1]).all()
    small = picture[::2, ::2, 0]
    assert (small.repeat(2, 0).repeat(2, 1) == picture[:, :, 0]).all()
    return [key(small[y : y + 8, x : x + 8] / 255 * 16) for y in (0, 8) for x in (0, 8)]


def labels() -> dict[bytes, int]:
    """Give the digit that each scan shows, straight from scikit-learn."""
    pixels, targets = load_digits(return_X_y=True)
    return {
        key(scan): int(label)
        for scan, label in zip(pixels.reshape(-1, 8, 8), targets, strict=True)
    }


def right_answer(question: str, shown: list[int]) -> int:
    """Answer ``question`` about four digits, in reading order."""
    if found := re.fullmatch(r"what digit is at the (\w+ \w+)\?", question):
        return shown[PLACES[found[1]]]
    if found := re.fullmatch(r"what is the sum of the (\w+) (?:row|column)\?", question):
        return sum(shown[place] for name, place in PLACES.items() if found[1] in name)
    if found := re.fullmatch(r"what is the (largest|smallest) digit\?", question):
        return sorted(shown)[-1 if found[1] == "largest" else 0]
    if found := re.fullmatch(r"how many digits are (even|odd)\?", question):
        odd = sum(digit % 2 for digit in shown)
        return odd if found[1] == "odd" else 4 - odd
    raise AssertionError(question)


def test_the_splits_have_their_sizes_and_ids_are_unique(task: Digits) -> None:
    assert [len(task.samples(split)) for split in Split] == [64, 500, 2000]
    samples = [sample for split in Split for sample in task.samples(split)]
    assert len({sample.id for sample in samples}) == len(samples)
    assert all(sample.split is split for split in Split for sample in task.samples(split))


def test_splits_share_no_unit_and_no_scan_and_know_no_training_scan(
    task: Digits, shown: dict[Split, list[list[bytes]]]
) -> None:
    train, held_out = scans()
    trained = {key(scan * 16) for scan in train.pixels}
    assert (len(train.labels), len(held_out.labels)) == (TRAIN_DIGITS, 1797 - TRAIN_DIGITS)
    seen = {split: {tile for four in shown[split] for tile in four} for split in Split}
    units = {split: {s.unit for s in task.samples(split)} for split in Split}
    for first, second in combinations(Split, 2):
        assert not seen[first] & seen[second]
        assert not units[first] & units[second]
    assert not trained & set().union(*seen.values())


def test_units_share_no_scan(task: Digits, shown: dict[Split, list[list[bytes]]]) -> None:
    scans_of: dict[str, set[bytes]] = {}
    for split in Split:
        for sample, four in zip(task.samples(split), shown[split], strict=True):
            scans_of.setdefault(sample.unit, set()).update(four)
    assert all(len(four) == 4 for four in scans_of.values())
    assert len(set().union(*scans_of.values())) == 4 * len(scans_of)


def test_every_stated_answer_is_right(task: Digits, shown: dict[Split, list[list[bytes]]]) -> None:
    known = labels()
    for split in Split:
        for sample, four in zip(task.samples(split), shown[split], strict=True):
            digits = [known[tile] for tile in four]
            assert sample.right == str(right_answer(sample.question, digits))


def test_the_same_seed_gives_the_same_samples_and_another_seed_others() -> None:
    few = Digits(seed=0, validation=50, test=100)
    assert replace(few).digest == few.digest
    assert replace(few, seed=1).digest != few.digest
    assert replace(few, proxy=32).digest != few.digest


def test_a_smaller_split_is_the_beginning_of_a_larger_one(task: Digits) -> None:
    few = Digits(seed=0, proxy=16, test=10)
    for split in (Split.PROXY, Split.TEST):
        mine, full = few.samples(split), task.samples(split)
        assert [s.id for s in mine] == [s.id for s in full[: len(mine)]]
        assert [s.question for s in mine] == [s.question for s in full[: len(mine)]]


def test_guessing_is_right_as_often_as_the_task_says(task: Digits) -> None:
    sample = task.samples(Split.PROXY)[0]
    assert task.chance == 1 / len(sample.targets)
    assert task.name == "digits"


def test_fresh_samples_show_training_scans_only_and_the_rest_stays(task: Digits) -> None:
    fresh = TrainingDigits(seed=0, proxy=100)
    train, _ = scans()
    trained = {key(scan * 16) for scan in train.pixels}
    known = labels()
    for sample in fresh.samples(Split.PROXY):
        four = tiles(sample)
        assert trained >= set(four)
        assert len(set(four)) == 4
        right = right_answer(sample.question, [known[tile] for tile in four])
        assert sample.right == str(right)
    for split in (Split.VALIDATION, Split.TEST):
        assert [s.id for s in fresh.samples(split)] == [s.id for s in task.samples(split)]
    assert checked(fresh).digest != task.digest
