"""Sizes of the splits that a study file does not set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks import DataTask, Split, validate_task
from effllava_optuna.tasks.data.split_sizes import complete_sizes, sizes_for_rows
from tests.tasks.row_tasks import rows_with_images, write_rows


def sizes(*numbers: int | None) -> dict[Split, int | None]:
    return dict(zip(Split, numbers, strict=True))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (10, (8, 1, 1)),
        (11, (8, 1, 1)),
        (16, (8, 4, 4)),
        (40, (20, 10, 10)),
        (128, (64, 32, 32)),
        (564, (64, 250, 250)),
        (565, (64, 500, 2000)),
    ],
)
def test_few_rows_are_halved_and_the_rest_is_divided(
    count: int, expected: tuple[int, int, int]
) -> None:
    assert sizes_for_rows(count, source="mine.jsonl") == sizes(*expected)
    assert complete_sizes(sizes(None, None, None), count) == sizes(*expected)


def test_sizes_that_are_set_do_not_change() -> None:
    assert complete_sizes(sizes(64, 500, 2000), 40) == sizes(64, 500, 2000)
    assert complete_sizes(sizes(None, 10, 10), 40) == sizes(20, 10, 10)
    assert complete_sizes(sizes(24, None, None), 40) == sizes(24, 500, 2000)
    assert complete_sizes(sizes(None, None, None), None) == sizes(64, 500, 2000)


def test_chosen_sizes_draw_what_the_same_numbers_draw(tmp_path: Path) -> None:
    data = write_rows(tmp_path, rows_with_images(tmp_path, 40))
    task = DataTask("qa", data)
    validate_task(task)
    assert [len(task.samples(split)) for split in Split] == [20, 10, 10]
    assert task.digest == DataTask("qa", data, proxy=20, validation=10, test=10).digest


def test_rows_of_separate_splits_are_not_divided(drawn: Path) -> None:
    task = DataTask("scienceqa", str(drawn / "scienceqa"))
    assert task.sizes == sizes(64, 500, 2000)
    assert len(task.samples(Split.PROXY)) == 64


@pytest.mark.parametrize("given", [{"proxy": 64}, {"proxy": 40}, {"proxy": 38, "test": 9000}])
def test_sizes_that_leave_a_split_empty_are_refused_with_some_that_fit(
    given: dict[str, Any], tmp_path: Path
) -> None:
    task = DataTask("qa", write_rows(tmp_path, rows_with_images(tmp_path, 40)), **given)
    with pytest.raises(TaskError, match=r"mine\.jsonl has 40 rows: task\.proxy = ") as caught:
        task.require_splits()
    assert caught.value.hint == (
        "Use task.proxy = 20, task.validation = 10 and task.test = 10, or leave all three out."
    )
    fitting = replace(task, proxy=20, validation=10, test=10)
    fitting.require_splits()
    assert len(fitting.samples(Split.TEST)) == 10


@pytest.mark.parametrize("pictures", [1, 2, 3, 4])
def test_each_split_has_a_picture_of_its_own(pictures: int, tmp_path: Path) -> None:
    rows = rows_with_images(tmp_path, 40)
    for number, row in enumerate(rows):
        row["image"] = f"{number % pictures}.png"
    task = DataTask("qa", write_rows(tmp_path, rows))
    if pictures >= len(Split):
        validate_task(task)
        assert len({sample.group for split in Split for sample in task.samples(split)}) == pictures
        return
    with pytest.raises(TaskError, match=f"40 rows are about {pictures} different picture"):
        task.require_splits()
