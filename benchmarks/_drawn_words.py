"""Questions answered in words, as in VizWiz-VQA, or in sentences, as in MM-Vet and LLaVA-Bench."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from _drawn_choices import WORDS

from effllava_optuna.tasks.digits import CORNERS, LINES

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

UNANSWERABLE = "unanswerable"
HIDDEN = -1  # a digit that the picture does not show
_SYNONYMS = {"yes": "yeah", "no": "nope", "even": "even number", "odd": "odd number"}
_UNSURE = ("unsuitable", "unsuitable image", "Unanswerable", "not sure", "3", "no")
_ROWS = (("top row", LINES["top row"]), ("bottom row", LINES["bottom row"]))
_COLUMNS = (("left column", LINES["left column"]), ("right column", LINES["right column"]))


@dataclass(frozen=True, slots=True)
class Short:
    """A question with an answer of a word or two.

    Attributes:
        question: As a person would say it.
        answer: In lower case; ``unanswerable`` where the picture hides what is asked.
        category: ``number``, ``yes/no``, ``other`` or ``unanswerable``.
    """

    question: str
    answer: str
    category: str


@dataclass(frozen=True, slots=True)
class Open:
    """A question that is answered in sentences.

    Attributes:
        question: As the user asks it.
        answer: One to three sentences.
        reference: What an answer must name, in MM-Vet's form: parts joined by ``<AND>``, ways to
            say the same by ``<OR>``.
        kind: MM-Vet's capabilities, joined by commas, or LLaVA-Bench's category.
    """

    question: str
    answer: str
    reference: str
    kind: str


def short_prompt(question: str) -> str:
    """Write the user's turn as LLaVA asks VizWiz-VQA (haotian-liu/LLaVA, its question file)."""
    return (
        f"{question}\nWhen the provided information is insufficient, respond with "
        "'Unanswerable'.\nAnswer the question using a single word or phrase."
    )


def short(digits: NDArray[np.int64], rng: np.random.Generator) -> Short:
    """Draw a short question about ``digits`` (shape ``(4,)``, `HIDDEN` where none is shown)."""
    while True:
        asked = _short(digits, rng)
        if asked is not None:
            return asked


def _short(digits: NDArray[np.int64], rng: np.random.Generator) -> Short | None:
    where, kind = int(rng.integers(4)), int(rng.integers(6))
    corner, digit = CORNERS[where], int(digits[where])
    if kind == 0:
        return _told(f"What digit is at the {corner}?", str(digit), "number", seen=digit >= 0)
    if kind == 1:
        line = list(LINES)[where]
        pair = digits[list(LINES[line])]
        return _told(
            f"What is the sum of the {line}?",
            str(pair.sum()),
            "number",
            seen=bool((pair >= 0).all()),
        )
    parity = ("even", "odd")[digit % 2]
    if kind == 2:
        said = "yes" if parity == "even" else "no"
        return _told(f"Is the digit at the {corner} even?", said, "yes/no", seen=digit >= 0)
    if kind == 3:
        return _told(
            f"Is the digit at the {corner} even or odd?", parity, "other", seen=digit >= 0
        )
    seen = bool((digits >= 0).all())
    if kind == 4:
        return _told("What is the largest digit?", str(digits.max()), "number", seen=seen)
    (places,) = (digits == digits.max()).nonzero()
    if seen and len(places) > 1:
        return None
    return _told("Where is the largest digit?", CORNERS[places[0]], "other", seen=seen)


def _told(question: str, answer: str, category: str, *, seen: bool) -> Short:
    if not seen:
        return Short(question, UNANSWERABLE, UNANSWERABLE)
    return Short(question, answer, category)


def ten(asked: Short, rng: np.random.Generator) -> list[str]:
    """Draw what ten people answer: most of them (six to nine) right, and some in other words."""
    right = int(rng.integers(6, 10))
    others = _UNSURE if asked.answer == UNANSWERABLE else _variants(asked.answer)
    noise = [others[i] for i in rng.integers(len(others), size=10 - right)]
    answers = [asked.answer] * right + noise
    return [answers[i] for i in rng.permutation(10)]


def _variants(answer: str) -> tuple[str, ...]:
    """Give other words for ``answer``, a typing error, and what somebody says who is unsure."""
    word = answer
    if answer.isdigit():
        word = WORDS[int(answer)] if int(answer) < 10 else f"{answer}."
    typo = word[:-2] + word[-1] if len(word) > 2 else word + word[-1]
    return (
        word.capitalize(), word.upper(), typo, _SYNONYMS.get(answer, f"the {word}"), UNANSWERABLE,
    )  # fmt: skip


def _pair(digits: NDArray[np.int64], places: tuple[int, int]) -> tuple[int, int]:
    return int(digits[places[0]]), int(digits[places[1]])


def _one_extreme(
    digits: NDArray[np.int64], extreme: Callable[[NDArray[np.int64]], np.int64]
) -> tuple[int, str] | None:
    """Give the extreme digit and its corner, unless several corners show it."""
    digit = int(extreme(digits))
    (places,) = (digits == digit).nonzero()
    return (digit, CORNERS[places[0]]) if len(places) == 1 else None


def capable(digits: NDArray[np.int64], rng: np.random.Generator) -> Open:
    """Draw a question in MM-Vet's manner about ``digits`` (shape ``(4,)``, all shown)."""
    while True:
        asked = _capable(digits, rng)
        if asked is not None:
            return asked


def _capable(digits: NDArray[np.int64], rng: np.random.Generator) -> Open | None:
    where, kind = int(rng.integers(4)), int(rng.integers(6))
    corner, digit = CORNERS[where], int(digits[where])
    line = list(LINES)[where]
    one, two = _pair(digits, LINES[line])
    if kind == 0:
        return Open(
            f"Which digit do you see at the {corner}?", f"The digit at the {corner} is {digit}.",
            f"{digit}<OR>{WORDS[digit]}", "ocr,spat",
        )  # fmt: skip
    if kind == 1:
        return Open(
            f"Which digits form the {line}?", f"The digits of the {line} are {one} and {two}.",
            f"{one}<AND>{two}", "ocr,spat",
        )  # fmt: skip
    if kind == 2:
        return Open(
            f"What do the digits of the {line} add up to?", f"{one} plus {two} is {one + two}.",
            f"{one + two}", "ocr,spat,math",
        )  # fmt: skip
    if kind == 3:
        parity = ("even", "odd")[digit % 2]
        return Open(
            f"Is the {corner} digit even or odd, and why?", f"It is {digit}, which is {parity}.",
            f"{parity}<OR>an {parity} number", "rec,ocr,know,spat",
        )  # fmt: skip
    if kind == 4:
        found = _one_extreme(digits, max)
        return found and Open(
            "Which digit is the largest, and where is it?",
            f"The largest digit is {found[0]}, at the {found[1]}.",
            f"{found[0]}<AND>{found[1]}", "rec,ocr,spat",
        )  # fmt: skip
    a, b, c, d = (int(digit) for digit in digits)
    return Open(
        "Describe the picture.",
        f"The top row shows {a} and {b}. The bottom row shows {c} and {d}.",
        f"{a}<AND>{b}<AND>{c}<AND>{d}", "rec,ocr,gen,spat",
    )  # fmt: skip


def in_the_wild(digits: NDArray[np.int64], rng: np.random.Generator, category: str) -> Open:
    """Draw a question in LLaVA-Bench's manner.

    Args:
        digits: Shape ``(4,)``, all shown.
        rng: Draws.
        category: ``conv``, ``detail`` or ``complex``.
    """
    draw = {"conv": _conversation, "detail": _detail, "complex": _complex}[category]
    while True:
        asked = draw(digits, rng)
        if asked is not None:
            return asked


def _conversation(digits: NDArray[np.int64], rng: np.random.Generator) -> Open:
    where = int(rng.integers(4))
    if rng.integers(2):
        corner, digit = CORNERS[where], int(digits[where])
        return Open(
            f"What is written at the {corner} of this picture?",
            f"The digit {digit} is written at the {corner}.", f"{digit}", "conv",
        )  # fmt: skip
    line = list(LINES)[where]
    one, two = _pair(digits, LINES[line])
    return Open(
        f"What can you read in the {line} of this picture?",
        f"You can read {one} and {two} in the {line}.", f"{one}<AND>{two}", "conv",
    )  # fmt: skip


def _detail(digits: NDArray[np.int64], rng: np.random.Generator) -> Open:
    a, b, c, d = (int(digit) for digit in digits)
    reference = f"{a}<AND>{b}<AND>{c}<AND>{d}"
    if rng.integers(2):
        return Open(
            "Describe this picture in detail.",
            "The picture shows four handwritten digits. "
            f"The top row holds {a} and {b}. The bottom row holds {c} and {d}.",
            reference, "detail",
        )  # fmt: skip
    return Open(
        "What does each corner of this picture show?",
        f"The top left shows {a}. The top right shows {b}. "
        f"The bottom left shows {c}. The bottom right shows {d}.",
        reference, "detail",
    )  # fmt: skip


def _complex(digits: NDArray[np.int64], rng: np.random.Generator) -> Open | None:
    kind = int(rng.integers(3))
    if kind == 0:
        word, lines = (("row", _ROWS), ("column", _COLUMNS))[rng.integers(2)]
        pairs = [_pair(digits, places) for _, places in lines]
        sums = [sum(pair) for pair in pairs]
        if sums[0] == sums[1]:
            return None
        larger = lines[sums.index(max(sums))][0]
        added = " and ".join(f"{a} plus {b} is {a + b}" for a, b in pairs)
        return Open(
            f"Which {word} has the larger sum, and why?",
            f"{added}. So the {larger} has the larger sum.",
            f"{sums[0]}<AND>{sums[1]}<AND>{larger}", "complex",
        )  # fmt: skip
    if kind == 1:
        found = _one_extreme(digits, min)
        return found and Open(
            "Which digit would come first if all were sorted?",
            f"The smallest digit comes first. It is {found[0]}, at the {found[1]}.",
            f"{found[0]}<AND>{found[1]}", "complex",
        )  # fmt: skip
    digit = int(digits.max())
    parity = ("even", "odd")[digit % 2]
    return Open(
        "Is the largest digit even or odd? Explain.",
        f"The largest digit is {digit}. It is {parity}.",
        f"{digit}<AND>{parity}", "complex",
    )  # fmt: skip


def caption(digits: NDArray[np.int64]) -> str:
    """Say what a picture of ``digits`` (shape ``(4,)``, all shown) shows."""
    a, b, c, d = (int(digit) for digit in digits)
    return f"Four handwritten digits: {a} and {b} are above {c} and {d}."
