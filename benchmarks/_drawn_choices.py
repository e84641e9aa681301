"""Questions with choices, in ScienceQA's fields, about four digits or about a text alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from effllava_optuna.tasks.digits import CORNERS, LINES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = "ABCDE"
NAMES = ("Ann", "Bob", "Eve", "Kim", "Leo", "Max")
_THINGS = ("apples", "books", "coins", "shells")
_USELESS = ("The picture shows four digits.", "The digits were written by hand.")


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a kind of question belongs to, in ScienceQA's fields; ``grades``: first and last."""

    subject: str
    topic: str
    category: str
    skill: str
    lecture: str
    grades: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with choices.

    Attributes:
        lesson: What it belongs to.
        question: Text, without the choices.
        choices: Two to five, all different.
        answer: Index of the right one.
        solution: Why it is right, in a sentence.
        hint: Empty where there is none.
    """

    lesson: Lesson
    question: str
    choices: tuple[str, ...]
    answer: int
    solution: str
    hint: str = ""


READING = Lesson(
    "language science", "reading-comprehension", "Pictures", "Read a digit in a picture",
    "A picture has corners. Look at the corner that the question names.", (1, 4),
)  # fmt: skip
WRITING = Lesson(
    "language science", "vocabulary", "Words", "Choose the word for a number",
    "Every number has a word that names it.", (1, 7),
)  # fmt: skip
ADDING = Lesson(
    "natural science", "units-and-measurement", "Measurement", "Add two numbers",
    "A sum is what two numbers make together.", (2, 8),
)  # fmt: skip
COUNTING = Lesson(
    "natural science", "science-and-engineering-practices", "Data", "Count what is alike",
    "An even number can be divided by two. An odd number cannot.", (4, 12),
)  # fmt: skip
COMPARING = Lesson(
    "natural science", "science-and-engineering-practices", "Data", "Compare numbers",
    "The largest number is the one that no other exceeds.", (3, 11),
)  # fmt: skip
MAPS = Lesson(
    "social science", "geography", "Maps", "Use a map",
    "A map shows where places are.", (5, 12),
)  # fmt: skip
TRADE = Lesson(
    "social science", "economics", "Goods", "Compare what people have",
    "People have goods, and some have more than others.", (3, 10),
)  # fmt: skip


def _problem(
    lesson: Lesson,
    question: str,
    right: str,
    pool: Sequence[str],
    size: int,
    *,
    solution: str,
    hint: str = "",
) -> Problem:
    """Offer ``size`` neighbours in ``pool``, the right one among them, in their order.

    A right answer of a kind of question always has the same letter: a model this small learns
    that, but not, in minutes, to look up which of some shuffled choices is the one it means.
    """
    start = min(pool.index(right) // size * size, len(pool) - size)
    choices = tuple(pool[start : start + size])
    return Problem(lesson, question, choices, choices.index(right), solution, hint)


def _numbers(until: int) -> list[str]:
    return [str(number) for number in range(until + 1)]


def _useless(rng: np.random.Generator) -> str:
    """Give a hint that says nothing of use, sometimes."""
    return _USELESS[rng.integers(len(_USELESS))] if rng.random() < 0.2 else ""


def _read(digits: NDArray[np.int64], rng: np.random.Generator) -> Problem:
    where = int(rng.integers(4))
    return _problem(
        READING, f"Which digit does the picture show at the {CORNERS[where]}?",
        str(digits[where]), _numbers(9), 5, hint=_useless(rng),
        solution=f"The digit at the {CORNERS[where]} is {digits[where]}.",
    )  # fmt: skip


def _name(digits: NDArray[np.int64], rng: np.random.Generator) -> Problem:
    where = int(rng.integers(4))
    word = WORDS[digits[where]]
    return _problem(
        WRITING, f"Which word names the digit at the {CORNERS[where]}?", word, WORDS, 2,
        hint=_useless(rng), solution=f"The digit at the {CORNERS[where]} is {word}.",
    )  # fmt: skip


def _sum(digits: NDArray[np.int64], rng: np.random.Generator) -> Problem:
    line = list(LINES)[rng.integers(4)]
    one, two = (int(digits[place]) for place in LINES[line])
    return _problem(
        ADDING, f"What is the sum of the {line}?", str(one + two), _numbers(18), 3,
        hint=_useless(rng), solution=f"{one} plus {two} is {one + two}.",
    )  # fmt: skip


def _count(digits: NDArray[np.int64], rng: np.random.Generator) -> Problem:
    word, remainder = (("even", 0), ("odd", 1))[rng.integers(2)]
    count = int((digits % 2 == remainder).sum())
    return _problem(
        COUNTING, f"How many digits of the picture are {word}?", str(count), _numbers(4), 5,
        hint=_useless(rng), solution=f"The number of {word} digits is {count}.",
    )  # fmt: skip


def _where(digits: NDArray[np.int64], rng: np.random.Generator) -> Problem | None:
    word, extreme = (("largest", digits.max()), ("smallest", digits.min()))[rng.integers(2)]
    (places,) = (digits == extreme).nonzero()
    if len(places) > 1:
        return None
    corner = CORNERS[places[0]]
    return _problem(
        MAPS, f"Where on the map is the {word} digit?", corner, CORNERS, 4,
        hint=_useless(rng), solution=f"The {word} digit is {extreme}, at the {corner}.",
    )  # fmt: skip


def _house(digits: NDArray[np.int64], rng: np.random.Generator) -> Problem:
    where, name = int(rng.integers(4)), NAMES[rng.integers(len(NAMES))]
    return _problem(
        MAPS, f"What is the number of {name}'s house?", str(digits[where]), _numbers(9), 5,
        hint=f"The picture is a map of four houses. {name} lives at the {CORNERS[where]}.",
        solution=f"The house at the {CORNERS[where]} has the number {digits[where]}.",
    )  # fmt: skip


def _compare(rng: np.random.Generator) -> Problem:
    word, pick = (("largest", max), ("smallest", min))[rng.integers(2)]
    numbers = [int(n) for n in rng.choice(19, 2, replace=False)]
    right = pick(numbers)
    return Problem(
        COMPARING, f"Which number is the {word}?", tuple(map(str, numbers)),
        numbers.index(right), f"The {word} number is {right}.",
    )  # fmt: skip


def _add(rng: np.random.Generator) -> Problem:
    one, two = (int(n) for n in rng.integers(10, size=2))
    return _problem(
        ADDING, f"What is {one} plus {two}?", str(one + two), _numbers(18), 4,
        solution=f"{one} plus {two} is {one + two}.",
    )  # fmt: skip


def _spell(rng: np.random.Generator) -> Problem:
    number = int(rng.integers(10))
    return _problem(
        WRITING, f"Which word names the number {number}?", WORDS[number], WORDS, 5,
        solution=f"The word for {number} is {WORDS[number]}.",
    )  # fmt: skip


def _owners(rng: np.random.Generator) -> tuple[str, list[str], list[int], str]:
    """Draw who has how many of what: the thing, the names, the numbers, the text."""
    thing = _THINGS[rng.integers(len(_THINGS))]
    names = [NAMES[i] for i in rng.choice(len(NAMES), 2, replace=False)]
    numbers = [int(n) for n in rng.choice(19, 2, replace=False)]
    told = (f"{name} has {n} {thing}." for name, n in zip(names, numbers, strict=True))
    return thing, names, numbers, " ".join(told)


def _most(rng: np.random.Generator) -> Problem:
    thing, names, numbers, hint = _owners(rng)
    word, pick = (("most", max), ("fewest", min))[rng.integers(2)]
    owner = numbers.index(pick(numbers))
    return Problem(
        TRADE, f"Who has the {word} {thing}?", tuple(names), owner,
        f"{names[owner]} has {numbers[owner]} {thing}.", hint,
    )  # fmt: skip


def _has(rng: np.random.Generator) -> Problem:
    thing, names, numbers, hint = _owners(rng)
    owner = int(rng.integers(2))
    return Problem(
        TRADE, f"How many {thing} does {names[owner]} have?", tuple(map(str, numbers)), owner,
        f"{names[owner]} has {numbers[owner]} {thing}.", hint,
    )  # fmt: skip


_PICTURED: tuple[Callable[[NDArray[np.int64], np.random.Generator], Problem | None], ...] = (
    _read, _name, _sum, _count, _where, _house,
)  # fmt: skip
_TEXT_ONLY: tuple[Callable[[np.random.Generator], Problem], ...] = (
    _compare, _add, _spell, _most, _has,
)  # fmt: skip


def pictured(digits: NDArray[np.int64], rng: np.random.Generator) -> Problem:
    """Draw a question about a picture of ``digits`` (shape ``(4,)``, in reading order)."""
    while True:
        problem = _PICTURED[rng.integers(len(_PICTURED))](digits, rng)
        if problem is not None:
            return problem


def text_only(rng: np.random.Generator) -> Problem:
    """Draw a question that needs no picture."""
    return _TEXT_ONLY[rng.integers(len(_TEXT_ONLY))](rng)


def science_prompt(question: str, choices: Sequence[str], hint: str = "") -> str:
    """Write the user's turn as LLaVA asks ScienceQA (haotian-liu/LLaVA, ``model_vqa_science.py``).

    Args:
        question: Without the choices.
        choices: Two to five.
        hint: Left out where it is empty.
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
