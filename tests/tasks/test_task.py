"""Samples and the splits of a task."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from effllava_optuna.errors import LeakError, TaskError
from effllava_optuna.tasks import Digits, GradingRule, Sample, Split, require_proxy, validate_task


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
    ("targets", "answer"), [((), 0), (("1",), 0), (("1", "2"), 2), (("1", "2"), -2)]
)
def test_a_closed_question_needs_two_answers_and_an_index_of_one(
    targets: tuple[str, ...], answer: int
) -> None:
    message = f"has {len(targets)} possible answers, and the index of the correct one is {answer}"
    with pytest.raises(TaskError, match=message):
        replace(SAMPLE, targets=targets, answer=answer)


class NoPicture:
    """An image source that opens something else than a picture."""

    def open(self) -> Any:
        return np.zeros((4, 4))


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("id", 5, "text"),
        ("group", None, "text"),
        ("group", ["a"], "text"),
        ("question", None, "text"),
        ("question", b"q?", "text"),
        ("question", ["q?"], "text"),
        ("question", "\ud800", "valid Unicode"),
        ("system", None, "text"),
        ("context", 5, "text"),
        ("targets", "ab", "tuple of texts"),
        ("targets", {"a", "b"}, "tuple of texts"),
        ("targets", np.array(["a", "b"]), "tuple of texts"),
        ("targets", ("a", None), "tuple of texts"),
        ("targets", (1, 2), "tuple of texts"),
        ("targets", ("a", "\udfff"), "valid Unicode"),
        ("subsets", "ab", "tuple of texts"),
        ("subsets", None, "tuple of texts"),
        ("answer", "1", "index"),
        ("answer", 1.0, "index"),
        ("answer", True, "index"),
        ("answer", [0], "index"),
        ("image", "a.png", "picture"),
        ("image", Path("a.png"), "picture"),
        ("image", b"abc", "picture"),
        ("image", [], "picture"),
        ("image", np.zeros((4, 4, 3), dtype=np.uint8), "picture"),
        ("rule", "exact match", "GradingRule"),
    ],
)
def test_a_field_of_another_type_is_refused(field: str, value: Any, kind: str) -> None:
    fields: dict[str, Any] = {
        "id": "a", "group": "a", "split": Split.PROXY, "image": None, "question": "q?",
        "targets": ("a", "b"), "answer": 0,
    }  # fmt: skip
    Sample(**fields)
    Sample(**(fields | {"answer": np.int64(1), "targets": ["a", "b"]}))
    with pytest.raises(TaskError, match=rf"{field} is .*, which is not a?n? ?{kind}") as caught:
        Sample(**(fields | {field: value}))
    assert len(str(caught.value)) < 400


def test_a_source_that_opens_no_picture_is_named() -> None:
    sample = Sample("a", "a", Split.PROXY, NoPicture(), "q?", ("a", "b"), 0)
    with pytest.raises(TaskError, match=r"image of sample 'a' .* array.*, which is not a picture"):
        sample.load_image()


@pytest.mark.parametrize("new_tokens", [-1, 0, "8", 2.5, None, True])
def test_a_rule_without_a_length_is_refused(new_tokens: Any) -> None:
    with pytest.raises(TaskError, match=r"Rule 'mine' has new_tokens = .*"):
        GradingRule("mine", lambda *_: 1.0, new_tokens)
