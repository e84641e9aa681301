"""Samples, and who may see which."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from effllava_optuna.errors import LeakError, TaskError
from effllava_optuna.tasks import Sample, Split, proxy_only

SAMPLE = Sample(
    id="row-7",
    unit="picture-3",
    split=Split.PROXY,
    image=Image.new("RGB", (32, 32)),
    question="what digit is at the top left?",
    targets=("1", "2", "3"),
    answer=2,
)


def test_proxy_samples_pass() -> None:
    samples = [SAMPLE, replace(SAMPLE, id="row-8")]
    assert proxy_only(samples, "The search") == tuple(samples)


@pytest.mark.parametrize("split", [Split.VALIDATION, Split.TEST])
def test_one_sample_of_another_split_is_a_leak(split: Split) -> None:
    samples = [SAMPLE, replace(SAMPLE, id="row-8", split=split)]
    message = f"Calibration was given {split} sample 'row-8'. Calibration, search and projector"
    with pytest.raises(LeakError, match=message):
        proxy_only(samples, "Calibration")


@pytest.mark.parametrize(("targets", "answer"), [((), 0), (("1",), 0), (("1", "2"), 2)])
def test_a_question_without_a_wrong_or_a_right_answer_is_refused(
    targets: tuple[str, ...], answer: int
) -> None:
    message = f"'row-7' has {len(targets)} possible answers, of which number {answer} is right"
    with pytest.raises(TaskError, match=message):
        replace(SAMPLE, targets=targets, answer=answer)


def test_a_negative_answer_does_not_count_from_the_end() -> None:
    with pytest.raises(TaskError, match=r"number -1 is right.*count the right one from 0"):
        replace(SAMPLE, answer=-1)
