"""What the second embedded model learns: the formats of the drawn datasets, and their words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _drawn_choices import LETTERS, Problem, pictured, science_prompt, text_only
from _drawn_words import (
    HIDDEN,
    UNANSWERABLE,
    Open,
    capable,
    caption,
    in_the_wild,
    short,
    short_prompt,
    ten,
)
from _small_vlm import SPECIAL, collate, four_tiles, message, processor_around, prompt_text
from draw_tasks import blank
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional

from effllava_optuna.tasks.digits import TARGETS, ask, draw, scans

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
_UNMARKED = -100  # what cross entropy leaves out


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, its answer, what is asked next, and the picture, if there is one.

    Attributes:
        prompt: The user's text.
        answer: The assistant's.
        picture: Shape ``(32, 32, 3)``.
        further: Prompts and answers that follow.
    """

    prompt: str
    answer: str
    picture: NDArray[np.uint8] | None
    further: tuple[tuple[str, str], ...] = ()


def build_processor() -> LlavaProcessor:
    """Build the tokenizer (one token a word, case kept) and the image processor."""
    split = pre_tokenizers.Whitespace()
    words = {word for text in _texts() for word, _ in split.pre_tokenize_str(text)}
    known = [*SPECIAL, *TARGETS, *sorted(words - {*SPECIAL, *TARGETS})]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(known)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.WordPiece(cleanup=True)  # a blank between words, none before "."
    return processor_around(tokenizer, longest=_LONGEST)


def _texts() -> Iterator[str]:
    """Give texts that contain every word of the drawn datasets; their grammar is small."""
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
        for problem in (pictured(digits, rng), text_only(rng)):
            yield " ".join(_strings(asdict(problem)))
        for shown in (digits, np.full(4, HIDDEN)):
            asked = short(shown, rng)
            yield " ".join([asked.question, asked.category, *ten(asked, rng)])
        wild = (in_the_wild(digits, rng, kind) for kind in ("conv", "detail", "complex"))
        for said in (capable(digits, rng), *wild):
            yield " ".join(_strings(asdict(said)))
        yield f"{caption(digits)} {ask(digits, rng)[0]} closed choice"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


class Course:
    """An endless supply of training batches, drawn from training scans only."""

    def __init__(self, processor: LlavaProcessor, rng: np.random.Generator) -> None:
        self.processor = processor
        self.rng = rng
        self.pool, _ = scans()

    def turn(self, group: str) -> Turn:
        """Draw a turn of ``group``.

        Args:
            group: ``science`` or ``text``: ScienceQA with or without a picture; ``short``:
                VizWiz-VQA; ``open``: MM-Vet, LLaVA-Bench, and the digits task.
        """
        rng = self.rng
        if group == "text":
            return _chosen(text_only(rng), None)
        digits, tiles = four_tiles(self.pool, rng)
        if group == "science":
            return _chosen(pictured(digits, rng), draw(tiles))
        if group == "short":
            return self._short(digits, tiles)
        kind = rng.integers(5)
        if kind == 0:
            question, number = ask(digits, rng)
            return Turn(question, TARGETS[number], draw(tiles))
        said: Open
        if kind <= 2:
            said = capable(digits, rng)
        else:
            said = in_the_wild(digits, rng, ("conv", "detail", "complex")[rng.integers(3)])
        return Turn(said.question, said.answer, draw(tiles))

    def _short(self, digits: NDArray[np.int64], tiles: NDArray[np.float32]) -> Turn:
        kind = self.rng.random()
        picture = None
        if kind < 0.12:
            digits, picture = np.full(4, HIDDEN), blank(self.rng)
        elif kind < 0.6:
            hidden = self.rng.integers(4)
            digits, tiles = digits.copy(), tiles.copy()
            digits[hidden], tiles[hidden] = HIDDEN, 0
        asked = short(digits, self.rng)
        if asked.answer == UNANSWERABLE and picture is None and self.rng.random() < 0.5:
            asked = short(digits, self.rng)  # else most would be unanswerable
        return Turn(
            short_prompt(asked.question), asked.answer, draw(tiles) if picture is None else picture
        )

    def loss(self, model: Any, group: str, size: int) -> torch.Tensor:
        """Compute the mean cross entropy, in nats, of the answers of ``size`` conversations."""
        turns = [self.turn(group) for _ in range(size)]
        system = [{"role": "system", "content": SYSTEM}] if self.rng.random() < 0.05 else []
        pairs = [self._tokens(turn, system) for turn in turns]
        pictures = [turn.picture for turn in turns if turn.picture is not None]
        inputs = collate(
            [ids for ids, _ in pairs], pictures, self.processor.tokenizer.pad_token_id
        )
        labels = torch.full_like(inputs["input_ids"], _UNMARKED)
        for label, (ids, marked) in zip(labels, pairs, strict=True):
            label[-len(ids) :] = torch.tensor(marked)
        total = functional.cross_entropy(
            model(**inputs).logits[:, :-1].flatten(0, 1),
            labels[:, 1:].flatten(),
            ignore_index=_UNMARKED,
            reduction="sum",
        )
        return total / size

    def _tokens(self, turn: Turn, system: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
        """Give a conversation's tokens, and those of its answers among them."""
        tokenizer = self.processor.tokenizer
        ids: list[int] = []
        marked: list[int] = []
        first = [*system, message(turn.prompt, pictured=turn.picture is not None)]
        asked = [first, *([message(text, pictured=False)] for text, _ in turn.further)]
        answers = [turn.answer, *(answer for _, answer in turn.further)]
        for messages, answer in zip(asked, answers, strict=True):
            text = prompt_text(self.processor, messages)
            before = tokenizer.encode(text, add_special_tokens=False)
            said = [
                *tokenizer.encode(answer, add_special_tokens=False),
                tokenizer.eos_token_id,
            ]
            ids += [*before, *said]
            marked += [*[_UNMARKED] * len(before), *said]
        return ids, marked


def _chosen(problem: Problem, picture: NDArray[np.uint8] | None) -> Turn:
    prompt = science_prompt(problem.question, problem.choices, problem.hint)
    return Turn(prompt, LETTERS[problem.answer], picture)
