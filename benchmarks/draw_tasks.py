"""Draw small datasets in the schemas of four benchmarks: ``python benchmarks/draw_tasks.py DIR``.

ScienceQA, VizWiz-VQA, MM-Vet and LLaVA-Bench (in the wild), a few hundred rows each, about
pictures of four handwritten digits. The columns are those of derek-thomas/ScienceQA,
lmms-lab/VizWiz-VQA, whyu/mm-vet and lmms-lab/llava-bench-in-the-wild. Only scans that trained no
embedded model are used. They are dealt into fours as `Digits` does it; a four gives one picture in
a dataset, so that no two splits of one share a scan.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _drawn_choices import Problem, pictured, text_only
from _drawn_words import HIDDEN, UNANSWERABLE, capable, caption, in_the_wild, short, ten
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

from effllava_optuna.tasks.digits import draw as tiled
from effllava_optuna.tasks.digits import enlarge, scans

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
# Rows, and which of the 99 fours they ask about: as many fours a split as `Digits` gives its own.
SCIENCE_SPLITS = {
    "train": (300, range(32)),
    "validation": (200, range(32, 57)),
    "test": (400, range(57, 99)),
}
VIZWIZ_SPLITS = {"val": (300, range(75)), "test": (96, range(75, 99))}
MMVET_ROWS, MMVET_FOURS = 80, range(70)
WILD_FOURS = range(70, 94)
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
        digits: Shape ``(4,)``, in reading order; `HIDDEN` where none is shown.
        image: 32 x 32 pixels, RGB.
    """

    digits: NDArray[np.int64]
    image: Image.Image


def draw(where: Path, seed: int = 0) -> None:
    """Write the four datasets below ``where``; the same ``seed`` gives the same rows.

    Args:
        where: Gets the directories ``scienceqa`` (as `DatasetDict.save_to_disk` does it),
            ``vizwiz`` (``val.parquet``, ``test.parquet``), ``mmvet`` (``mm-vet.jsonl`` and
            ``images``) and ``llava-bench`` (``train.parquet``).
        seed: Deals the scans and draws the questions, >= 0.
    """
    shown = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        _draw_science(where / "scienceqa", seed)
        _draw_vizwiz(where / "vizwiz", seed)
        _draw_mmvet(where / "mmvet", seed)
        _draw_wild(where / "llava-bench", seed)
    finally:
        if shown:
            enable_progress_bars()


def _fours(seed: int) -> NDArray[np.int64]:
    """Deal the held-out scans into fours, shape ``(99, 4)``, as `Digits` does it."""
    _, held_out = scans()
    dealt = np.random.default_rng([seed, 0]).permutation(len(held_out.labels))
    return dealt[: len(dealt) // 4 * 4].reshape(-1, 4)


def _picture(four: NDArray[np.int64], hidden: int | None = None) -> Picture:
    """Draw a four, its digit number ``hidden`` blacked out."""
    _, held_out = scans()
    tiles, digits = enlarge(held_out.pixels[four]), held_out.labels[four].copy()
    if hidden is not None:
        tiles[hidden], digits[hidden] = 0, HIDDEN
    return Picture(digits, Image.fromarray(tiled(tiles)))


def blank(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a dark, blurred nothing, shape ``(32, 32, 3)``."""
    grey = rng.integers(0, 60) + rng.integers(-4, 5, size=(32, 32))
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _row(problem: Problem, image: Image.Image | None, rng: np.random.Generator) -> dict[str, Any]:
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


def _draw_science(where: Path, seed: int) -> None:
    fours, asked, splits = _fours(seed), set[tuple[Any, ...]](), {}
    for number, (split, (size, mine)) in enumerate(SCIENCE_SPLITS.items()):
        rng = np.random.default_rng([seed, 1, number])
        pictures = [_picture(fours[four]) for four in mine]
        rows: list[dict[str, Any]] = []
        for index in rng.permutation(size):
            # Three rows in ten have no picture; no question is asked twice about the same.
            seen = pictures[index % len(pictures)] if index % 10 >= 3 else None
            key: tuple[Any, ...] = ()
            while not key or key in asked:
                problem = pictured(seen.digits, rng) if seen else text_only(rng)
                about = (split, index % len(pictures)) if seen else None
                key = (about, problem.question, problem.hint, problem.choices)
            asked.add(key)
            rows.append(_row(problem, seen.image if seen else None, rng))
        splits[split] = Dataset.from_list(rows, features=SCIENCE)
    DatasetDict(splits).save_to_disk(str(where))


def _draw_vizwiz(where: Path, seed: int) -> None:
    where.mkdir(parents=True, exist_ok=True)
    fours = _fours(seed)
    for number, (split, (size, mine)) in enumerate(VIZWIZ_SPLITS.items()):
        rng = np.random.default_rng([seed, 2, number])
        pictures = [_partly(fours[four], index, rng) for index, four in enumerate(mine)]
        rows = [
            _answered(pictures[index % len(mine)], f"VizWiz_{split}_{index:08d}", rng)
            for index in range(size)
        ]
        if split == "test":
            rows = [row | {"answers": None, "category": None} for row in rows]
        Dataset.from_list(rows, features=VIZWIZ).to_parquet(where / f"{split}.parquet")


def _partly(four: NDArray[np.int64], index: int, rng: np.random.Generator) -> Picture:
    """Draw a picture as blind people take them: one in eight is blank, half lack a digit."""
    if index % 8 == 0:
        return Picture(np.full(4, HIDDEN), Image.fromarray(blank(rng)))
    return _picture(four, int(rng.integers(4)) if index % 2 else None)


def _answered(picture: Picture, name: str, rng: np.random.Generator) -> dict[str, Any]:
    asked = short(picture.digits, rng)
    if (picture.digits >= 0).sum() == 3:
        # What cannot be answered is asked rarely enough to be three rows in ten of all.
        wanted = rng.random() < 0.35
        while (asked.answer == UNANSWERABLE) != wanted:
            asked = short(picture.digits, rng)
    return {
        "question_id": name,
        "image": picture.image,
        "question": asked.question,
        "answers": ten(asked, rng),
        "category": asked.category,
    }


def _draw_mmvet(where: Path, seed: int) -> None:
    (where / "images").mkdir(parents=True, exist_ok=True)
    fours, rng, lines = _fours(seed), np.random.default_rng([seed, 3]), []
    for index in range(MMVET_ROWS):
        four = MMVET_FOURS[index % len(MMVET_FOURS)]
        picture, name = _picture(fours[four]), f"v1_{four}.png"
        if index == four:
            picture.image.save(where / "images" / name)
        asked = capable(picture.digits, rng)
        row = {"question_id": f"v1_{index}", "image": name, "question": asked.question}
        lines.append(json.dumps(row | {"answer": asked.reference, "capability": asked.kind}))
    (where / "mm-vet.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _draw_wild(where: Path, seed: int) -> None:
    where.mkdir(parents=True, exist_ok=True)
    fours, rng = _fours(seed), np.random.default_rng([seed, 4])
    rows: list[dict[str, Any]] = []
    for index, four in enumerate(WILD_FOURS):
        picture = _picture(fours[four])
        for category in WILD_CATEGORIES[index % len(WILD_CATEGORIES)]:
            asked = in_the_wild(picture.digits, rng, category)
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
    Dataset.from_list(rows, features=WILD).to_parquet(where / "train.parquet")


def main() -> None:
    """Draw them where the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("where", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw(arguments.where, arguments.seed)


if __name__ == "__main__":
    main()
