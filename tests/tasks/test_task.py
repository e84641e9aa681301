"""Samples and the splits of a task."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from effllava_optuna.errors import LeakError, TaskError
from effllava_optuna.tasks import Digits, Sample, Split, require_proxy, validate_task


@dataclass(frozen=True)
class EditedDigits:
    """The digits task with other samples in one split."""

    split: Split
    edited: tuple[Sample, ...]
    digits: Digits = field(default_factory=lambda: Digits(proxy=8, validation=8, test=8))
    name: str = "edited"
    digest: str = "edited"
    chance: float = 0.25

    def samples(self, split: Split) -> tuple[Sample, ...]:
        return self.edited if split is self.split else self.digits.samples(split)


SAMPLE = Digits(proxy=8, validation=8, test=8).samples(Split.PROXY)[3]


def test_a_task_whose_splits_share_nothing_is_valid() -> None:
    task = Digits(proxy=8, validation=8, test=8)
    assert validate_task(task) is task


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ((), "has no test samples"),
        ((replace(SAMPLE, id="a", split=Split.TEST),), "group 'four-.*' is in proxy and in test"),
        ((SAMPLE,), "two samples with the id 'proxy-0003'"),
    ],
)
def test_an_invalid_split_is_refused(samples: tuple[Sample, ...], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        validate_task(EditedDigits(Split.TEST, samples))


def test_proxy_samples_pass() -> None:
    samples = [SAMPLE, replace(SAMPLE, id="row-8")]
    assert require_proxy(samples, "The search") == tuple(samples)


@pytest.mark.parametrize("split", [Split.VALIDATION, Split.TEST])
def test_one_sample_of_another_split_is_a_leak(split: Split) -> None:
    samples = [SAMPLE, replace(SAMPLE, id="row-8", split=split)]
    message = f"Calibration was given {split} sample 'row-8'. Calibration, search and projector"
    with pytest.raises(LeakError, match=message):
        require_proxy(samples, "Calibration")


@pytest.mark.parametrize(
    ("targets", "answer"), [((), 0), (("1",), 0), (("1", "2"), 2), (("1", "2"), -1)]
)
def test_a_closed_question_needs_two_answers_and_an_index_of_one(
    targets: tuple[str, ...], answer: int
) -> None:
    message = f"has {len(targets)} possible answers, and the index of the correct one is {answer}"
    with pytest.raises(TaskError, match=message):
        replace(SAMPLE, targets=targets, answer=answer)
