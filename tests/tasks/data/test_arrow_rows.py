"""Parquet files are read in parts, of which a limited number of bytes is kept."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.data import arrow_rows
from effllava_optuna.tasks.data.arrow_rows import ParquetRows

SIZE = 10_000


@pytest.fixture
def files(tmp_path: Path) -> list[ParquetRows]:
    """Three files of 12 values of 10 kB each, in row groups of 4."""
    stream = np.random.default_rng(0)
    rows = []
    for number in range(3):
        file = tmp_path / f"{number}.parquet"
        values = [bytes([number, row]) + stream.bytes(SIZE) for row in range(12)]
        pq.write_table(pa.table({"image": values, "id": range(12)}), file, row_group_size=4)
        rows.append(ParquetRows(file))
    return rows


def test_values_in_any_order_are_right_and_few_are_kept(
    files: list[ParquetRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    recent = arrow_rows._RecentColumns(9 * SIZE)  # two row groups
    monkeypatch.setattr(arrow_rows, "_RECENT", recent)
    for index in np.random.default_rng(1).permutation(36).tolist():
        number, row = divmod(index, 12)
        assert files[number].value(row, "image")[:2] == bytes([number, row])
        assert files[number].value(row, "id") == row
        assert recent.n_bytes <= 10 * SIZE


def test_a_row_group_that_is_larger_than_the_limit_is_kept_alone(
    files: list[ParquetRows], monkeypatch: pytest.MonkeyPatch
) -> None:
    recent = arrow_rows._RecentColumns(1)
    monkeypatch.setattr(arrow_rows, "_RECENT", recent)
    for row in range(12):
        assert files[0].value(row, "image")[:2] == bytes([0, row])
    assert 4 * SIZE <= recent.n_bytes < 5 * SIZE


def test_what_is_kept_of_a_file_is_dropped_with_it(files: list[ParquetRows]) -> None:
    gc.collect()
    before = arrow_rows._RECENT.n_bytes
    assert files[1].value(3, "image")[:2] == b"\1\3"
    assert arrow_rows._RECENT.n_bytes > before
    files.clear()
    gc.collect()
    assert arrow_rows._RECENT.n_bytes == before


def test_missing_columns_and_columns_of_one_name(tmp_path: Path, files: list[ParquetRows]) -> None:
    assert files[0].value(0, "none") is None
    assert list(files[0].iterate(["none"])) == [{"none": None}] * 12
    assert next(files[0].iterate(["id", "none"])) == {"id": 0, "none": None}
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(TaskError, match=r"twice\.parquet: two columns have the same name"):
        ParquetRows(tmp_path / "twice.parquet")
