"""The drawn datasets have the schemas of the benchmarks, and an embedded model answers them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pytest
from PIL import Image

from effllava_optuna.checkpoint_format import EMBEDDED
from effllava_optuna.evaluation.answering import GradedAnswer, answer_samples
from effllava_optuna.surgery import LoadedModel, load
from effllava_optuna.tasks import DataTask, Split, TaskOptions
from effllava_optuna.tasks.data.digits import load_scans, render_tiles, upscale
from tests.conftest import script

if TYPE_CHECKING:
    from collections.abc import Iterable

COLUMNS = ["image", "question", "choices", "answer", "hint", "task", "grade", "subject", "topic"]
COLUMNS += ["category", "skill", "lecture", "solution"]


@pytest.fixture(scope="module")
def science(drawn: Path) -> Any:
    return datasets.load_from_disk(str(drawn / "scienceqa"))


@pytest.fixture(scope="module")
def tables(drawn: Path) -> dict[str, Any]:
    files = {
        "val": drawn / "vizwiz" / "val.parquet",
        "test": drawn / "vizwiz" / "test.parquet",
        "wild": drawn / "llava-bench" / "train.parquet",
    }
    return {name: datasets.Dataset.from_parquet(str(file)) for name, file in files.items()}


@pytest.fixture(scope="module")
def mmvet(drawn: Path) -> list[dict[str, str]]:
    text = (drawn / "mmvet" / "mm-vet.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def tiles(images: Iterable[Image.Image | None]) -> set[bytes]:
    """Return the scans that ``images`` show, without black ones."""
    grids = [np.asarray(image)[:, :, 0].reshape(2, 16, 2, 16) for image in images if image]
    scans = [grid[row, :, column] for grid in grids for row in (0, 1) for column in (0, 1)]
    return {scan.tobytes() for scan in scans if scan.any()}


def pictures(drawn: Path, mmvet: list[dict[str, str]]) -> list[Image.Image]:
    """Open the pictures of the rows of MM-Vet."""
    images: list[Image.Image] = []
    for row in mmvet:
        with Image.open(drawn / "mmvet" / "images" / row["image"], formats=["PNG"]) as image:
            image.load()
            images.append(image)
    return images


def test_the_same_seed_draws_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    draw_tasks = script("draw_tasks")
    draw_tasks.draw(tmp_path / "again")
    draw_tasks.draw(tmp_path / "other", seed=1)
    files = [file.relative_to(drawn) for file in drawn.rglob("*")]
    files = [file for file in files if (drawn / file).is_file()]
    assert len(files) > 80
    assert sum((drawn / file).stat().st_size for file in files) < 2_000_000
    same = [
        (drawn / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files
    ]
    assert all(same)
    arrow = "scienceqa/test/data-00000-of-00001.arrow"
    assert (drawn / arrow).read_bytes() != (tmp_path / "other" / arrow).read_bytes()


def test_scienceqa_has_the_columns_of_the_hub(science: Any) -> None:
    assert {split: len(rows) for split, rows in science.items()} == {
        "train": 300,
        "validation": 200,
        "test": 400,
    }
    for rows in science.values():
        assert rows.column_names == COLUMNS
        assert isinstance(rows.features["image"], datasets.Image)
        assert rows.features["choices"] == datasets.List(datasets.Value("string"))
        assert rows.features["answer"] == datasets.Value("int8")
        assert set(rows["task"]) == {"closed choice"}
        assert {int(grade.removeprefix("grade")) for grade in rows["grade"]} == {*range(1, 13)}
        assert len(set(rows["subject"])) == 3
        assert {len(choices) for choices in rows["choices"]} == {2, 3, 4, 5}
        assert all(len({*choices}) == len(choices) for choices in rows["choices"])
        assert sum(image is None for image in rows["image"]) == 0.3 * len(rows)
        assert 0.2 < np.mean([hint != "" for hint in rows["hint"]]) < 0.6


def test_no_position_is_always_or_never_right(science: Any) -> None:
    problems = [row for rows in science.values() for row in rows.remove_columns("image")]
    for count in (2, 3, 4, 5):
        right = Counter(row["answer"] for row in problems if len(row["choices"]) == count)
        assert {*right} == {*range(count)}
        assert max(right.values()) < 0.7 * sum(right.values())


def test_splits_share_neither_scans_nor_questions_without_a_picture(science: Any) -> None:
    shown = [tiles(rows["image"]) for rows in science.values()]
    assert min(map(len, shown)) >= 96
    assert sum(map(len, shown)) == len(set.union(*shown))
    asked = [
        (row["question"], row["hint"], *row["choices"])
        for rows in science.values()
        for row in rows
        if row["image"] is None
    ]
    assert len(asked) == len({*asked}) == 270


def test_no_picture_shows_a_training_scan(
    science: Any, tables: dict[str, Any], mmvet: list[dict[str, str]], drawn: Path
) -> None:
    images = [image for rows in (*science.values(), *tables.values()) for image in rows["image"]]
    images += pictures(drawn, mmvet)
    trained, _ = load_scans()
    groups = upscale(trained.pixels).reshape(-1, 4, 16, 16)
    training = tiles(Image.fromarray(render_tiles(group)) for group in groups)
    assert len(training) > 1300
    assert not training & tiles(images)


def test_vizwiz_has_ten_noisy_answers_except_in_the_test_split(tables: dict[str, Any]) -> None:
    rows, test = tables["val"], tables["test"]
    assert rows.column_names == ["question_id", "image", "question", "answers", "category"]
    assert (len(rows), len(test)) == (300, 96)
    assert {len(answers) for answers in rows["answers"]} == {10}
    most = [Counter(answers).most_common(1)[0] for answers in rows["answers"]]
    assert min(count for _, count in most) >= 6
    assert max(count for _, count in most) < 10
    kinds = Counter(rows["category"])
    assert {*kinds} == {"number", "yes/no", "other", "unanswerable"}
    assert 0.25 < kinds["unanswerable"] / 300 < 0.35
    for (word, _), kind in zip(most, rows["category"], strict=True):
        assert (word == "unanswerable") == (kind == "unanswerable")
        assert word.isdigit() == (kind == "number")
    assert [*test["answers"]] == [None] * 96
    assert not tiles(rows["image"]) & tiles(test["image"]) - tiles(blanks(rows, test))


def blanks(*tables: Any) -> list[Image.Image]:
    """Return the pictures without digits."""
    return [image for rows in tables for image in rows["image"] if np.asarray(image).max() < 64]


def test_references_of_mmvet_have_parts_and_alternatives(
    mmvet: list[dict[str, str]], drawn: Path
) -> None:
    assert [row["question_id"] for row in mmvet] == [f"v1_{index}" for index in range(80)]
    assert all(
        [*row] == ["question_id", "image", "question", "answer", "capability"] for row in mmvet
    )
    assert sum("<AND>" in row["answer"] for row in mmvet) > 20
    assert sum("<OR>" in row["answer"] for row in mmvet) > 10
    capabilities = {name for row in mmvet for name in row["capability"].split(",")}
    assert capabilities == {"rec", "ocr", "know", "gen", "spat", "math"}
    assert len({*(drawn / "mmvet" / "images").iterdir()}) == 70
    assert {picture.size for picture in pictures(drawn, mmvet)} == {(32, 32)}


def test_llava_bench_asks_sixty_questions_about_24_pictures(tables: dict[str, Any]) -> None:
    rows = tables["wild"]
    assert rows.column_names == [
        "question_id",
        "question",
        "image",
        "category",
        "gpt_answer",
        "caption",
    ]
    assert [*rows["question_id"]] == [*range(60)]
    assert {*rows["category"]} == {"conv", "detail", "complex"}
    assert len({image.tobytes() for image in rows["image"]}) == 24
    assert all(text.endswith(".") for text in [*rows["gpt_answer"], *rows["caption"]])


TASKS = ("scienceqa", "vizwiz", "mmvet", "llava-bench")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load("drawn-vlm", device="cpu")


@pytest.mark.parametrize("name", TASKS)
def test_the_tokenizer_has_every_word(model: LoadedModel, drawn: Path, name: str) -> None:
    samples = DataTask(name, str(drawn / name)).all_rows(Split.TEST)
    texts = [text for sample in samples for text in (sample.question, *sample.targets[:1])]
    encoded = model.processor.tokenizer(texts)["input_ids"]
    unknown = model.processor.tokenizer.unk_token_id
    assert [text for text, ids in zip(texts, encoded, strict=True) if unknown in ids] == []


@pytest.mark.parametrize("name", TASKS)
def test_the_model_has_the_scores_of_its_card(model: LoadedModel, drawn: Path, name: str) -> None:
    task = DataTask(name, str(drawn / name), options=TaskOptions(new_tokens=40))
    samples = task.all_rows(Split.TEST)[:60]
    answers: list[GradedAnswer] = []
    answer_samples(model, samples, answers.extend)
    card = (EMBEDDED / "drawn-vlm" / "README.md").read_text()
    (low,) = re.findall(rf"\| {name} \|.*\| ([\d.]+) to [\d.]+ \|", card)
    assert np.mean([answer.score or 0.0 for answer in answers]) > float(low) - 0.12


def test_the_model_is_small_and_stock(model: LoadedModel) -> None:
    assert type(model.model).__name__ == "LlavaForConditionalGeneration"
    files = (EMBEDDED / "drawn-vlm").iterdir()
    assert sum(file.stat().st_size for file in files) < 6_000_000
