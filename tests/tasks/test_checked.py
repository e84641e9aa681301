from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import Digits, Sample, Split, checked


@dataclass(frozen=True)
class Edited:
    """Digits, but one split is something else."""

    split: Split
    edited: tuple[Sample, ...]
    digits: Digits = field(default_factory=lambda: Digits(proxy=8, validation=8, test=8))
    name: str = "edited"
    digest: str = "edited"
    chance: float = 0.25

    def samples(self, split: Split) -> tuple[Sample, ...]:
        return self.edited if split is self.split else self.digits.samples(split)


def test_a_task_whose_splits_share_nothing_passes() -> None:
    task = Digits()
    assert checked(task) is task


def test_a_unit_in_two_splits_is_named() -> None:
    stolen = replace(Digits(proxy=8).samples(Split.PROXY)[3], id="stolen", split=Split.TEST)
    with pytest.raises(TaskError, match=f"unit '{stolen.unit}' is in proxy and in test"):
        checked(Edited(Split.TEST, (stolen,)))


def test_an_empty_split_is_named() -> None:
    with pytest.raises(TaskError, match="has no validation samples"):
        checked(Edited(Split.VALIDATION, ()))
