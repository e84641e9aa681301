"""Messages are short, whatever values they have."""

from __future__ import annotations

import io
from collections import OrderedDict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from effllava_optuna.config.loading import load_config
from effllava_optuna.errors import ConfigError, EffllavaError, TaskError, shorten
from effllava_optuna.tasks import DataTask, Split

LARGE = 1_000_000


def picture() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


PICTURE = picture()


@pytest.mark.parametrize(
    "value",
    [
        "a" * LARGE,
        "\0" * LARGE,
        b"\xff" * LARGE,
        bytearray(LARGE),
        10**4000,
        ["a" * LARGE] * 9,
        {"a" * LARGE: {"b" * LARGE: "c"}},
        [[[[[["a" * LARGE]]]]]],
        list(range(LARGE)),
        {number: number for number in range(1000)},
        OrderedDict(a=[1] * LARGE),
        np.arange(LARGE),
        Path("a" * LARGE),
        date(2020, 1, 1),
        None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_of_any_size_is_short(value: Any) -> None:
    assert 0 < len(shorten(value)) <= 120


def test_a_short_value_is_whole() -> None:
    for value in ("a" * 100, ["a", 1, None], {"bytes": 1, "path": "x"}, -1.5, True):
        assert shorten(value) == repr(value)


def test_a_message_is_cut_even_if_its_values_are_not() -> None:
    error = EffllavaError(f"{'a' * LARGE} end.", hint=f"Use {'b' * LARGE}.")
    assert len(str(error)) < 5000
    assert error.message.endswith("end.")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("image", [{"bytes": PICTURE, "path": None}] * 3),
        ("image", {"a": PICTURE}),
        ("image", "a" * LARGE),
        ("question", {"bytes": PICTURE, "path": "a.png"}),
        ("question", [PICTURE] * 3),
        ("answer", PICTURE),
        ("answer", [["a" * LARGE]]),
        ("answer", {"a": ["a" * LARGE]}),
        ("choices", ["a" * LARGE, None]),
        ("choices", "a" * LARGE),
        ("stratum", [PICTURE]),
    ],
)
def test_a_row_with_a_large_value_is_named_in_a_short_line(
    tmp_path: Path, column: str, value: Any
) -> None:
    row = {"image": None, "question": "q?", "answer": "a", column: value}
    pq.write_table(pa.Table.from_pylist([row] * 8), tmp_path / "mine.parquet")
    with pytest.raises(TaskError, match=f"row 1: {column} ") as caught:
        DataTask("qa", str(tmp_path / "mine.parquet"), proxy=4).samples(Split.PROXY)
    assert len(str(caught.value)) < 1000


def test_large_ids_answers_and_columns_are_shortened(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "choices": ["a", "b"], "answer": "a" * LARGE} for n in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    twice = [{"question": f"{n}?", "answer": "a", "id": "a" * LARGE} for n in range(8)]
    pq.write_table(pa.Table.from_pylist(twice), tmp_path / "twice.parquet")
    (tmp_path / "header.csv").write_text("a" * 100_000 + ",b\n1,2\n")
    for name, message in {
        "mine.parquet": "is outside its 2 choices",
        "twice.parquet": "is also that of row 1",
        "header.csv": "has no column 'question'",
    }.items():
        with pytest.raises(TaskError, match=message) as caught:
            DataTask("qa", str(tmp_path / name), proxy=4).samples(Split.PROXY)
        assert len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    "line", [f'x = "{"a" * LARGE}"', f"{'a' * LARGE} = 1", f'seed = "{"a" * LARGE}"']
)
def test_a_large_value_in_a_study_file_is_shortened(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f'[model]\npath = "digits-vlm"\n[task]\nname = "digits"\n[study]\n{line}\n')
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r", "\n\n  ", "\u2028", "\x0b"])
def test_a_message_is_one_line(line_end: str) -> None:
    error = EffllavaError(f"It failed:{line_end}a.", hint=f"Use{line_end}b.")
    assert (error.message, error.hint) == ("It failed: a.", "Use b.")
    assert str(error) == "It failed: a. Use b."
