"""Training data of the second embedded model, in the formats of the drawn datasets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _drawn_multiple_choice import (
    LETTERS,
    ChoiceProblem,
    picture_problem,
    science_prompt,
    text_problem,
)
from _drawn_open_questions import (
    HIDDEN,
    UNANSWERABLE,
    OpenQuestion,
    caption,
    llava_bench_question,
    mmvet_question,
    short_prompt,
    short_question,
    ten_answers,
)
from _small_vlm import SPECIAL, collate, four_tiles, message, processor_around, prompt_text
from draw_tasks import blank
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional

from effllava_optuna.tasks.data.digits import TARGETS, draw_question, load_scans, render_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from transformers import LlavaProcessor

# The system message of Vicuna, hence of LLaVA 1.5 (haotian-liu/LLaVA, ``conversation.py``).
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the human's questions."
)
_LONGEST = 256
_IGNORED = -100  # label that cross entropy ignores


@dataclass(frozen=True, slots=True)
class Turn:
    """A question with its answer and its picture.

    Attributes:
        prompt: Text of the user.
        answer: Text of the assistant.
        picture: Shape ``(32, 32, 3)``; None: there is no picture.
    """

    prompt: str
    answer: str
    picture: NDArray[np.uint8] | None


def build_processor() -> LlavaProcessor:
    """Create the tokenizer (one token for each word, with its case) and the image processor."""
    split = pre_tokenizers.Whitespace()
    words = {word for text in _texts() for word, _ in split.pre_tokenize_str(text)}
    vocabulary = [*SPECIAL, *TARGETS, *sorted(words - {*SPECIAL, *TARGETS})]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.WordPiece(cleanup=True)  # a space between words, none before "."
    return processor_around(tokenizer, longest=_LONGEST)


def _texts() -> Iterator[str]:
    """Yield texts that contain every word of the drawn datasets; their vocabulary is small."""
    yield from (
        "system: user: assistant:",
        SYSTEM,
        " ".join(LETTERS),
        " ".join(map(str, range(41))),
    )
    yield from (science_prompt("?", ["?"] * 5, "?"), short_prompt("?"))
    rng = np.random.default_rng(0)
    for _ in range(3000):
        digits = rng.integers(10, size=4)
        for problem in (picture_problem(digits, rng), text_problem(rng)):
            yield " ".join(_strings(asdict(problem)))
        for shown in (digits, np.full(4, HIDDEN)):
            asked = short_question(shown, rng)
            yield " ".join([asked.question, asked.category, *ten_answers(asked, rng)])
        wild = (llava_bench_question(digits, rng, kind) for kind in ("conv", "detail", "complex"))
        for open_question in (mmvet_question(digits, rng), *wild):
            yield " ".join(_strings(asdict(open_question)))
        yield f"{caption(digits)} {draw_question(digits, rng)[0]} closed choice"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


class TrainingData:
    """Random conversations about training scans.

    Args:
        processor: The tokenizer and the image processor.
        rng: Random generator of pictures and questions.
    """

    def __init__(self, processor: LlavaProcessor, rng: np.random.Generator) -> None:
        self.processor = processor
        self.rng = rng
        self.scans, _ = load_scans()

    def turn(self, task: str) -> Turn:
        """Draw a turn.

        Args:
            task: ``science`` or ``text``: ScienceQA with or without a picture; ``short``:
                VizWiz-VQA; ``open``: MM-Vet, LLaVA-Bench, and the digits task.
        """
        rng = self.rng
        if task == "text":
            return _choice_turn(text_problem(rng), None)
        digits, tiles = four_tiles(self.scans, rng)
        if task == "science":
            return _choice_turn(picture_problem(digits, rng), render_tiles(tiles))
        if task == "short":
            return self._short(digits, tiles)
        kind = rng.integers(5)
        if kind == 0:
            question, number = draw_question(digits, rng)
            return Turn(question, TARGETS[number], render_tiles(tiles))
        asked: OpenQuestion
        if kind <= 2:
            asked = mmvet_question(digits, rng)
        else:
            category = ("conv", "detail", "complex")[rng.integers(3)]
            asked = llava_bench_question(digits, rng, category)
        return Turn(asked.question, asked.answer, render_tiles(tiles))

    def _short(self, digits: NDArray[np.int64], tiles: NDArray[np.float32]) -> Turn:
        """Draw a turn about a picture that may be blank or lack a digit."""
        kind = self.rng.random()
        blank_picture = None
        if kind < 0.12:
            digits, blank_picture = np.full(4, HIDDEN), blank(self.rng)
        elif kind < 0.6:
            hidden = self.rng.integers(4)
            digits, tiles = digits.copy(), tiles.copy()
            digits[hidden], tiles[hidden] = HIDDEN, 0
        asked = short_question(digits, self.rng)
        unanswerable = asked.answer == UNANSWERABLE
        if unanswerable and blank_picture is None and self.rng.random() < 0.5:
            asked = short_question(digits, self.rng)  # otherwise most would be unanswerable
        picture = render_tiles(tiles) if blank_picture is None else blank_picture
        return Turn(short_prompt(asked.question), asked.answer, picture)

    def loss(self, model: Any, task: str, size: int) -> torch.Tensor:
        """Compute the mean cross entropy, in nats, of the answers of ``size`` conversations."""
        turns = [self.turn(task) for _ in range(size)]
        system = [{"role": "system", "content": SYSTEM}] if self.rng.random() < 0.05 else []
        pairs = [self._tokens(turn, system) for turn in turns]
        pictures = [turn.picture for turn in turns if turn.picture is not None]
        inputs = collate(
            [ids for ids, _ in pairs], pictures, self.processor.tokenizer.pad_token_id
        )
        labels = torch.full_like(inputs["input_ids"], _IGNORED)
        for row, (ids, labels_of_turn) in zip(labels, pairs, strict=True):
            row[-len(ids) :] = torch.tensor(labels_of_turn)
        total = functional.cross_entropy(
            model(**inputs).logits[:, :-1].flatten(0, 1),
            labels[:, 1:].flatten(),
            ignore_index=_IGNORED,
            reduction="sum",
        )
        return total / size

    def _tokens(self, turn: Turn, system: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
        """Return the tokens of a conversation, and its labels: only the answer is learned."""
        tokenizer = self.processor.tokenizer
        messages = [*system, message(turn.prompt, pictured=turn.picture is not None)]
        prompt = tokenizer.encode(prompt_text(self.processor, messages), add_special_tokens=False)
        answer = [
            *tokenizer.encode(turn.answer, add_special_tokens=False),
            tokenizer.eos_token_id,
        ]
        return [*prompt, *answer], [*[_IGNORED] * len(prompt), *answer]


def _choice_turn(problem: ChoiceProblem, picture: NDArray[np.uint8] | None) -> Turn:
    prompt = science_prompt(problem.question, problem.choices, problem.hint)
    return Turn(prompt, LETTERS[problem.answer], picture)
