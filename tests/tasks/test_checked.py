from __future__ import annotations

from dataclasses import replace

import pytest

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import Digits, Sample, Split, checked


class Edited(Digits):
    """Digits, but one split is something else."""

    def __init__(self, split: Split, samples: tuple[Sample, ...]) -> None:
        super().__init__(proxy=8, validation=8, test=8)
        object.__setattr__(self, "edit", (split, samples))

    def samples(self, split: Split) -> tuple[Sample, ...]:
        edited, samples = self.edit  # type: ignore[attr-defined]
        return samples if split is edited else super().samples(split)


def test_a_task_whose_splits_share_nothing_passes() -> None:
    task = Digits()
    assert checked(task) is task


def test_a_unit_in_two_splits_is_named() -> None:
    stolen = replace(Digits(proxy=8).samples(Split.PROXY)[3], split=Split.TEST)
    with pytest.raises(TaskError, match=f"unit '{stolen.unit}' is in proxy and in test"):
        checked(Edited(Split.TEST, (stolen,)))


def test_an_empty_split_is_named() -> None:
    with pytest.raises(TaskError, match="has no validation samples"):
        checked(Edited(Split.VALIDATION, ()))
