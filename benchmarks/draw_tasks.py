"""Draw small datasets in the schemas of four benchmarks: ``python benchmarks/draw_tasks.py DIR``.

ScienceQA, VizWiz-VQA, MM-Vet and LLaVA-Bench (in the wild), at most a few hundred rows each, about
pictures of four handwritten digits. The columns are those of derek-thomas/ScienceQA,
lmms-lab/VizWiz-VQA, whyu/mm-vet and lmms-lab/llava-bench-in-the-wild. Only scans that have not
trained an embedded model are used. They are split into groups of four as by `Digits`; a group is
one picture of a dataset, so that the splits of a dataset do not share scans.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _drawn_multiple_choice import ChoiceProblem, picture_problem, text_problem
from _drawn_open_questions import (
    HIDDEN,
    UNANSWERABLE,
    caption,
    llava_bench_question,
    mmvet_question,
    short_question,
    ten_answers,
)
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    List,
    Value,
    disable_progress_bars,
    enable_progress_bars,
    is_progress_bar_enabled,
)
from datasets import Image as ImageFeature
from PIL import Image

from effllava_optuna.tasks.data.digits import load_scans, upscale
from effllava_optuna.tasks.data.digits import render_tiles as tiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TEXT = Value("string")
SCIENCE = Features(
    {"image": ImageFeature(), "question": _TEXT, "choices": List(_TEXT), "answer": Value("int8")}
    | dict.fromkeys(("hint", "task", "grade", "subject", "topic", "category"), _TEXT)
    | dict.fromkeys(("skill", "lecture", "solution"), _TEXT)
)
VIZWIZ = Features(
    {"question_id": _TEXT, "image": ImageFeature(), "question": _TEXT}
    | {"answers": List(_TEXT), "category": _TEXT}
)
WILD = Features(
    {"question_id": Value("int64"), "question": _TEXT, "image": ImageFeature()}
    | dict.fromkeys(("category", "gpt_answer", "caption"), _TEXT)
)
# Numbers of rows, and their groups (of 99): as many for each split as in `Digits`.
SCIENCE_SPLITS = {
    "train": (300, range(32)),
    "validation": (200, range(32, 57)),
    "test": (400, range(57, 99)),
}
VIZWIZ_SPLITS = {"val": (300, range(75)), "test": (96, range(75, 99))}
MMVET_ROWS, MMVET_GROUPS = 80, range(70)
WILD_GROUPS = range(70, 94)
WILD_CATEGORIES = (
    ("conv", "detail", "complex"),
    ("complex", "conv"),
    ("detail", "complex", "conv"),
    ("complex", "detail"),
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of four digits.

    Attributes:
        digits: Shape ``(4,)``, in reading order; `HIDDEN` if not shown.
        image: 32 x 32 pixels, RGB.
    """

    digits: NDArray[np.int64]
    image: Image.Image


def draw(directory: Path, seed: int = 0) -> None:
    """Write the four datasets to a directory; the same ``seed`` gives the same rows.

    Args:
        directory: Parent of the directories ``scienceqa`` (by `DatasetDict.save_to_disk`),
            ``vizwiz`` (``val.parquet``, ``test.parquet``), ``mmvet`` (``mm-vet.jsonl`` and
            ``images``) and ``llava-bench`` (``train.parquet``).
        seed: Seed of the groups and the questions, at least 0.
    """
    shown = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        _draw_science(directory / "scienceqa", seed)
        _draw_vizwiz(directory / "vizwiz", seed)
        _draw_mmvet(directory / "mmvet", seed)
        _draw_wild(directory / "llava-bench", seed)
    finally:
        if shown:
            enable_progress_bars()


def _groups(seed: int) -> NDArray[np.int64]:
    """Split the held-out scans into groups of four, shape ``(99, 4)``, as `Digits` does."""
    _, held_out = load_scans()
    shuffled = np.random.default_rng([seed, 0]).permutation(len(held_out.labels))
    return shuffled[: len(shuffled) // 4 * 4].reshape(-1, 4)


def _picture(group: NDArray[np.int64], hidden: int | None = None) -> Picture:
    """Render a group, with the digit at index ``hidden`` blacked out."""
    _, held_out = load_scans()
    tiles, digits = upscale(held_out.pixels[group]), held_out.labels[group].copy()
    if hidden is not None:
        tiles[hidden], digits[hidden] = 0, HIDDEN
    return Picture(digits, Image.fromarray(tiled(tiles)))


def blank(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a dark noisy picture without digits, shape ``(32, 32, 3)``."""
    grey = rng.integers(0, 60) + rng.integers(-4, 5, size=(32, 32))
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _row(
    problem: ChoiceProblem, image: Image.Image | None, rng: np.random.Generator
) -> dict[str, Any]:
    lesson = problem.lesson
    first, last = lesson.grades
    return {
        "image": image,
        "question": problem.question,
        "choices": list(problem.choices),
        "answer": problem.answer,
        "hint": problem.hint,
        "task": "closed choice",
        "grade": f"grade{rng.integers(first, last + 1)}",
        "subject": lesson.subject,
        "topic": lesson.topic,
        "category": lesson.category,
        "skill": lesson.skill,
        "lecture": lesson.lecture,
        "solution": problem.solution,
    }


def _draw_science(directory: Path, seed: int) -> None:
    groups, asked, splits = _groups(seed), set[tuple[Any, ...]](), {}
    for number, (split, (size, indices)) in enumerate(SCIENCE_SPLITS.items()):
        rng = np.random.default_rng([seed, 1, number])
        pictures = [_picture(groups[each]) for each in indices]
        rows: list[dict[str, Any]] = []
        for index in rng.permutation(size):
            # Three rows in ten have no picture; a question is asked once about a picture.
            seen = pictures[index % len(pictures)] if index % 10 >= 3 else None
            key: tuple[Any, ...] = ()
            while not key or key in asked:
                problem = picture_problem(seen.digits, rng) if seen else text_problem(rng)
                about = (split, index % len(pictures)) if seen else None
                key = (about, problem.question, problem.hint, problem.choices)
            asked.add(key)
            rows.append(_row(problem, seen.image if seen else None, rng))
        splits[split] = Dataset.from_list(rows, features=SCIENCE)
    DatasetDict(splits).save_to_disk(str(directory))


def _draw_vizwiz(directory: Path, seed: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    groups = _groups(seed)
    for number, (split, (size, indices)) in enumerate(VIZWIZ_SPLITS.items()):
        rng = np.random.default_rng([seed, 2, number])
        pictures = [_partly(groups[group], index, rng) for index, group in enumerate(indices)]
        rows = [
            _answered(pictures[index % len(indices)], f"VizWiz_{split}_{index:08d}", rng)
            for index in range(size)
        ]
        if split == "test":
            rows = [row | {"answers": None, "category": None} for row in rows]
        Dataset.from_list(rows, features=VIZWIZ).to_parquet(directory / f"{split}.parquet")


def _partly(group: NDArray[np.int64], index: int, rng: np.random.Generator) -> Picture:
    """Render a group as in VizWiz: one picture in eight is blank, half of them lack a digit."""
    if index % 8 == 0:
        return Picture(np.full(4, HIDDEN), Image.fromarray(blank(rng)))
    return _picture(group, int(rng.integers(4)) if index % 2 else None)


def _answered(picture: Picture, name: str, rng: np.random.Generator) -> dict[str, Any]:
    asked = short_question(picture.digits, rng)
    if (picture.digits >= 0).sum() == 3:
        # Chosen so that three rows in ten of all are unanswerable.
        wanted = rng.random() < 0.35
        while (asked.answer == UNANSWERABLE) != wanted:
            asked = short_question(picture.digits, rng)
    return {
        "question_id": name,
        "image": picture.image,
        "question": asked.question,
        "answers": ten_answers(asked, rng),
        "category": asked.category,
    }


def _draw_mmvet(directory: Path, seed: int) -> None:
    (directory / "images").mkdir(parents=True, exist_ok=True)
    groups, rng, lines = _groups(seed), np.random.default_rng([seed, 3]), []
    for index in range(MMVET_ROWS):
        group = MMVET_GROUPS[index % len(MMVET_GROUPS)]
        picture, name = _picture(groups[group]), f"v1_{group}.png"
        if index == group:
            picture.image.save(directory / "images" / name)
        asked = mmvet_question(picture.digits, rng)
        row = {"question_id": f"v1_{index}", "image": name, "question": asked.question}
        lines.append(json.dumps(row | {"answer": asked.reference, "capability": asked.kind}))
    (directory / "mm-vet.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _draw_wild(directory: Path, seed: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    groups, rng = _groups(seed), np.random.default_rng([seed, 4])
    rows: list[dict[str, Any]] = []
    for index, group in enumerate(WILD_GROUPS):
        picture = _picture(groups[group])
        for category in WILD_CATEGORIES[index % len(WILD_CATEGORIES)]:
            asked = llava_bench_question(picture.digits, rng, category)
            rows.append(
                {
                    "question_id": len(rows),
                    "question": asked.question,
                    "image": picture.image,
                    "category": category,
                    "gpt_answer": asked.answer,
                    "caption": caption(picture.digits),
                }
            )
    Dataset.from_list(rows, features=WILD).to_parquet(directory / "train.parquet")


def main() -> None:
    """Draw the datasets into the directory of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw(arguments.directory, arguments.seed)


if __name__ == "__main__":
    main()
