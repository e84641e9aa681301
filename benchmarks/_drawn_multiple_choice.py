"""Multiple-choice questions with the fields of ScienceQA, about four digits or about a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from _drawn_lessons import (
    ADDING,
    COMPARING,
    COUNTING,
    MAPS,
    READING,
    TRADE,
    WRITING,
)

from effllava_optuna.tasks.data.digits import CORNERS, LINES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from _drawn_lessons import Lesson
    from numpy.typing import NDArray

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = "ABCDE"
NAMES = ("Ann", "Bob", "Eve", "Kim", "Leo", "Max")
_THINGS = ("apples", "books", "coins", "shells")
_USELESS = ("The picture shows four digits.", "The digits were written by hand.")


@dataclass(frozen=True, slots=True)
class ChoiceProblem:
    """A multiple-choice question.

    Attributes:
        lesson: Its classification.
        question: Text without the choices.
        choices: Two to five different choices.
        answer: Index of the right choice.
        solution: The reason, in a sentence.
        hint: The hint; may be empty.
    """

    lesson: Lesson
    question: str
    choices: tuple[str, ...]
    answer: int
    solution: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Choices:
    """Neighbouring choices, in their order.

    A right answer of a kind of question always has the same letter: a model this small learns
    that in minutes, but does not learn to find its answer among shuffled choices.

    Attributes:
        right: The right choice.
        pool: All possible choices.
        size: Number of choices of a question.
    """

    right: str
    pool: Sequence[str]
    size: int

    @property
    def listed(self) -> tuple[str, ...]:
        """Return the choices of the question."""
        start = self.pool.index(self.right) // self.size * self.size
        start = min(start, len(self.pool) - self.size)
        return tuple(self.pool[start : start + self.size])


def _problem(
    lesson: Lesson, question: str, choices: Choices, *, solution: str, hint: str = ""
) -> ChoiceProblem:
    listed = choices.listed
    return ChoiceProblem(
        lesson=lesson,
        question=question,
        choices=listed,
        answer=listed.index(choices.right),
        solution=solution,
        hint=hint,
    )


def _numbers(until: int) -> list[str]:
    return [str(number) for number in range(until + 1)]


def _useless(rng: np.random.Generator) -> str:
    """Return a useless hint with probability 0.2, otherwise an empty one."""
    return _USELESS[rng.integers(len(_USELESS))] if rng.random() < 0.2 else ""


def _read(digits: NDArray[np.int64], rng: np.random.Generator) -> ChoiceProblem:
    corner_index = int(rng.integers(4))
    return _problem(
        READING,
        f"Which digit does the picture show at the {CORNERS[corner_index]}?",
        Choices(str(digits[corner_index]), _numbers(9), 5),
        hint=_useless(rng),
        solution=f"The digit at the {CORNERS[corner_index]} is {digits[corner_index]}.",
    )


def _name(digits: NDArray[np.int64], rng: np.random.Generator) -> ChoiceProblem:
    corner_index = int(rng.integers(4))
    word = WORDS[digits[corner_index]]
    return _problem(
        WRITING,
        f"Which word names the digit at the {CORNERS[corner_index]}?",
        Choices(word, WORDS, 2),
        hint=_useless(rng),
        solution=f"The digit at the {CORNERS[corner_index]} is {word}.",
    )


def _sum(digits: NDArray[np.int64], rng: np.random.Generator) -> ChoiceProblem:
    line = list(LINES)[rng.integers(4)]
    one, two = (int(digits[place]) for place in LINES[line])
    return _problem(
        ADDING,
        f"What is the sum of the {line}?",
        Choices(str(one + two), _numbers(18), 3),
        hint=_useless(rng),
        solution=f"{one} plus {two} is {one + two}.",
    )


def _count(digits: NDArray[np.int64], rng: np.random.Generator) -> ChoiceProblem:
    word, remainder = (("even", 0), ("odd", 1))[rng.integers(2)]
    count = int((digits % 2 == remainder).sum())
    return _problem(
        COUNTING,
        f"How many digits of the picture are {word}?",
        Choices(str(count), _numbers(4), 5),
        hint=_useless(rng),
        solution=f"The number of {word} digits is {count}.",
    )


def _where(digits: NDArray[np.int64], rng: np.random.Generator) -> ChoiceProblem | None:
    word, extreme = (("largest", digits.max()), ("smallest", digits.min()))[rng.integers(2)]
    (places,) = (digits == extreme).nonzero()
    if len(places) > 1:
        return None
    corner = CORNERS[places[0]]
    return _problem(
        MAPS,
        f"Where on the map is the {word} digit?",
        Choices(corner, CORNERS, 4),
        hint=_useless(rng),
        solution=f"The {word} digit is {extreme}, at the {corner}.",
    )


def _house(digits: NDArray[np.int64], rng: np.random.Generator) -> ChoiceProblem:
    corner_index, name = int(rng.integers(4)), NAMES[rng.integers(len(NAMES))]
    corner, number = CORNERS[corner_index], digits[corner_index]
    return _problem(
        MAPS,
        f"What is the number of {name}'s house?",
        Choices(str(number), _numbers(9), 5),
        hint=f"The picture is a map of four houses. {name} lives at the {corner}.",
        solution=f"The house at the {corner} has the number {number}.",
    )


def _compare(rng: np.random.Generator) -> ChoiceProblem:
    word, pick = (("largest", max), ("smallest", min))[rng.integers(2)]
    numbers = [int(n) for n in rng.choice(19, 2, replace=False)]
    right = pick(numbers)
    return ChoiceProblem(
        lesson=COMPARING,
        question=f"Which number is the {word}?",
        choices=tuple(map(str, numbers)),
        answer=numbers.index(right),
        solution=f"The {word} number is {right}.",
    )


def _add(rng: np.random.Generator) -> ChoiceProblem:
    one, two = (int(n) for n in rng.integers(10, size=2))
    return _problem(
        ADDING,
        f"What is {one} plus {two}?",
        Choices(str(one + two), _numbers(18), 4),
        solution=f"{one} plus {two} is {one + two}.",
    )


def _spell(rng: np.random.Generator) -> ChoiceProblem:
    number = int(rng.integers(10))
    return _problem(
        WRITING,
        f"Which word names the number {number}?",
        Choices(WORDS[number], WORDS, 5),
        solution=f"The word for {number} is {WORDS[number]}.",
    )


def _owners(rng: np.random.Generator) -> tuple[str, list[str], list[int], str]:
    """Draw two owners of a thing; return the thing, their names, their numbers, and a text."""
    thing = _THINGS[rng.integers(len(_THINGS))]
    names = [NAMES[i] for i in rng.choice(len(NAMES), 2, replace=False)]
    numbers = [int(n) for n in rng.choice(19, 2, replace=False)]
    sentences = (f"{name} has {n} {thing}." for name, n in zip(names, numbers, strict=True))
    return thing, names, numbers, " ".join(sentences)


def _most(rng: np.random.Generator) -> ChoiceProblem:
    thing, names, numbers, hint = _owners(rng)
    word, pick = (("most", max), ("fewest", min))[rng.integers(2)]
    owner = numbers.index(pick(numbers))
    return ChoiceProblem(
        lesson=TRADE,
        question=f"Who has the {word} {thing}?",
        choices=tuple(names),
        answer=owner,
        solution=f"{names[owner]} has {numbers[owner]} {thing}.",
        hint=hint,
    )


def _has(rng: np.random.Generator) -> ChoiceProblem:
    thing, names, numbers, hint = _owners(rng)
    owner = int(rng.integers(2))
    return ChoiceProblem(
        lesson=TRADE,
        question=f"How many {thing} does {names[owner]} have?",
        choices=tuple(map(str, numbers)),
        answer=owner,
        solution=f"{names[owner]} has {numbers[owner]} {thing}.",
        hint=hint,
    )


_PICTURED: tuple[Callable[[NDArray[np.int64], np.random.Generator], ChoiceProblem | None], ...] = (
    _read, _name, _sum, _count, _where, _house,
)  # fmt: skip
_TEXT_ONLY: tuple[Callable[[np.random.Generator], ChoiceProblem], ...] = (
    _compare, _add, _spell, _most, _has,
)  # fmt: skip


def picture_problem(digits: NDArray[np.int64], rng: np.random.Generator) -> ChoiceProblem:
    """Draw a question about a picture of ``digits`` (shape ``(4,)``, in reading order)."""
    while True:
        problem = _PICTURED[rng.integers(len(_PICTURED))](digits, rng)
        if problem is not None:
            return problem


def text_problem(rng: np.random.Generator) -> ChoiceProblem:
    """Draw a question without a picture."""
    return _TEXT_ONLY[rng.integers(len(_TEXT_ONLY))](rng)


def science_prompt(question: str, choices: Sequence[str], hint: str = "") -> str:
    """Return the prompt of LLaVA for ScienceQA (haotian-liu/LLaVA, ``model_vqa_science.py``).

    Args:
        question: Text without the choices.
        choices: Two to five choices.
        hint: The hint; omitted if it is empty.
    """
    lettered = zip(LETTERS[: len(choices)], choices, strict=True)
    return "\n".join(
        [
            *([f"Context: {hint}"] if hint else []),
            question,
            *(f"{letter}. {choice}" for letter, choice in lettered),
            "Answer with the option's letter from the given choices directly.",
        ]
    )
