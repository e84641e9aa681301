"""Questions with short answers, as in VizWiz-VQA, or sentences, as in MM-Vet and LLaVA-Bench."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from _drawn_multiple_choice import WORDS

from effllava_optuna.tasks.data.digits import CORNERS, LINES

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

UNANSWERABLE = "unanswerable"
HIDDEN = -1  # instead of a digit that the picture does not show
_SYNONYMS = {"yes": "yeah", "no": "nope", "even": "even number", "odd": "odd number"}
_UNSURE = ("unsuitable", "unsuitable image", "Unanswerable", "not sure", "3", "no")
_ROWS = (("top row", LINES["top row"]), ("bottom row", LINES["bottom row"]))
_COLUMNS = (("left column", LINES["left column"]), ("right column", LINES["right column"]))


@dataclass(frozen=True, slots=True)
class ShortQuestion:
    """A question with an answer of a word or two.

    Attributes:
        question: In spoken language.
        answer: In lower case; ``unanswerable`` if the picture does not show it.
        category: ``number``, ``yes/no``, ``other`` or ``unanswerable``.
    """

    question: str
    answer: str
    category: str


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """A question with an answer in sentences.

    Attributes:
        question: Text of the user.
        answer: One to three sentences.
        reference: Required content of an answer in the format of MM-Vet: parts joined by
            ``<AND>``, alternatives by ``<OR>``.
        kind: Capabilities of MM-Vet, joined by commas, or category of LLaVA-Bench.
    """

    question: str
    answer: str
    reference: str
    kind: str


def short_prompt(question: str) -> str:
    """Return the prompt of LLaVA for VizWiz-VQA (haotian-liu/LLaVA, its question file)."""
    return (
        f"{question}\nWhen the provided information is insufficient, respond with "
        "'Unanswerable'.\nAnswer the question using a single word or phrase."
    )


def short_question(digits: NDArray[np.int64], rng: np.random.Generator) -> ShortQuestion:
    """Draw a short question about ``digits`` (shape ``(4,)``, `HIDDEN` if not shown)."""
    while True:
        asked = _short(digits, rng)
        if asked is not None:
            return asked


def _short(digits: NDArray[np.int64], rng: np.random.Generator) -> ShortQuestion | None:
    corner_index, kind = int(rng.integers(4)), int(rng.integers(6))
    corner, digit = CORNERS[corner_index], int(digits[corner_index])
    if kind == 0:
        return _answered_if_seen(
            f"What digit is at the {corner}?", str(digit), "number", seen=digit >= 0
        )
    if kind == 1:
        line = list(LINES)[corner_index]
        pair = digits[list(LINES[line])]
        return _answered_if_seen(
            f"What is the sum of the {line}?",
            str(pair.sum()),
            "number",
            seen=bool((pair >= 0).all()),
        )
    parity = ("even", "odd")[digit % 2]
    if kind == 2:
        answer = "yes" if parity == "even" else "no"
        return _answered_if_seen(
            f"Is the digit at the {corner} even?", answer, "yes/no", seen=digit >= 0
        )
    if kind == 3:
        return _answered_if_seen(
            f"Is the digit at the {corner} even or odd?", parity, "other", seen=digit >= 0
        )
    seen = bool((digits >= 0).all())
    if kind == 4:
        return _answered_if_seen(
            "What is the largest digit?", str(digits.max()), "number", seen=seen
        )
    (places,) = (digits == digits.max()).nonzero()
    if seen and len(places) > 1:
        return None
    return _answered_if_seen("Where is the largest digit?", CORNERS[places[0]], "other", seen=seen)


def _answered_if_seen(question: str, answer: str, category: str, *, seen: bool) -> ShortQuestion:
    if not seen:
        return ShortQuestion(question, UNANSWERABLE, UNANSWERABLE)
    return ShortQuestion(question, answer, category)


def ten_answers(asked: ShortQuestion, rng: np.random.Generator) -> list[str]:
    """Draw the answers of ten people: six to nine are right, the others differ or are wrong."""
    right = int(rng.integers(6, 10))
    others = _UNSURE if asked.answer == UNANSWERABLE else _variants(asked.answer)
    noise = [others[i] for i in rng.integers(len(others), size=10 - right)]
    answers = [asked.answer] * right + noise
    return [answers[i] for i in rng.permutation(10)]


def _variants(answer: str) -> tuple[str, ...]:
    """Return variants of ``answer``: case, typing error, synonym, and ``unanswerable``."""
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
    """Return the extreme digit and its corner; None if several corners show it."""
    digit = int(extreme(digits))
    (places,) = (digits == digit).nonzero()
    return (digit, CORNERS[places[0]]) if len(places) == 1 else None


def mmvet_question(digits: NDArray[np.int64], rng: np.random.Generator) -> OpenQuestion:
    """Draw a question in the style of MM-Vet about ``digits`` (shape ``(4,)``, all shown)."""
    while True:
        asked = _capable(digits, rng)
        if asked is not None:
            return asked


def _capable(digits: NDArray[np.int64], rng: np.random.Generator) -> OpenQuestion | None:
    corner_index, kind = int(rng.integers(4)), int(rng.integers(6))
    corner, digit = CORNERS[corner_index], int(digits[corner_index])
    line = list(LINES)[corner_index]
    one, two = _pair(digits, LINES[line])
    if kind == 0:
        return OpenQuestion(
            f"Which digit do you see at the {corner}?", f"The digit at the {corner} is {digit}.",
            f"{digit}<OR>{WORDS[digit]}", "ocr,spat",
        )  # fmt: skip
    if kind == 1:
        return OpenQuestion(
            f"Which digits form the {line}?", f"The digits of the {line} are {one} and {two}.",
            f"{one}<AND>{two}", "ocr,spat",
        )  # fmt: skip
    if kind == 2:
        return OpenQuestion(
            f"What do the digits of the {line} add up to?", f"{one} plus {two} is {one + two}.",
            f"{one + two}", "ocr,spat,math",
        )  # fmt: skip
    if kind == 3:
        parity = ("even", "odd")[digit % 2]
        return OpenQuestion(
            f"Is the {corner} digit even or odd, and why?", f"It is {digit}, which is {parity}.",
            f"{parity}<OR>an {parity} number", "rec,ocr,know,spat",
        )  # fmt: skip
    if kind == 4:
        extreme = _one_extreme(digits, max)
        return extreme and OpenQuestion(
            "Which digit is the largest, and where is it?",
            f"The largest digit is {extreme[0]}, at the {extreme[1]}.",
            f"{extreme[0]}<AND>{extreme[1]}", "rec,ocr,spat",
        )  # fmt: skip
    a, b, c, d = (int(digit) for digit in digits)
    return OpenQuestion(
        "Describe the picture.",
        f"The top row shows {a} and {b}. The bottom row shows {c} and {d}.",
        f"{a}<AND>{b}<AND>{c}<AND>{d}", "rec,ocr,gen,spat",
    )  # fmt: skip


def llava_bench_question(
    digits: NDArray[np.int64], rng: np.random.Generator, category: str
) -> OpenQuestion:
    """Draw a question in the style of LLaVA-Bench.

    Args:
        digits: Shape ``(4,)``, all shown.
        rng: Random generator.
        category: ``conv``, ``detail`` or ``complex``.
    """
    draw = {"conv": _conversation, "detail": _detail, "complex": _complex}[category]
    while True:
        asked = draw(digits, rng)
        if asked is not None:
            return asked


def _conversation(digits: NDArray[np.int64], rng: np.random.Generator) -> OpenQuestion:
    corner_index = int(rng.integers(4))
    if rng.integers(2):
        corner, digit = CORNERS[corner_index], int(digits[corner_index])
        return OpenQuestion(
            f"What is written at the {corner} of this picture?",
            f"The digit {digit} is written at the {corner}.", f"{digit}", "conv",
        )  # fmt: skip
    line = list(LINES)[corner_index]
    one, two = _pair(digits, LINES[line])
    return OpenQuestion(
        f"What can you read in the {line} of this picture?",
        f"You can read {one} and {two} in the {line}.", f"{one}<AND>{two}", "conv",
    )  # fmt: skip


def _detail(digits: NDArray[np.int64], rng: np.random.Generator) -> OpenQuestion:
    a, b, c, d = (int(digit) for digit in digits)
    reference = f"{a}<AND>{b}<AND>{c}<AND>{d}"
    if rng.integers(2):
        return OpenQuestion(
            "Describe this picture in detail.",
            "The picture shows four handwritten digits. "
            f"The top row holds {a} and {b}. The bottom row holds {c} and {d}.",
            reference, "detail",
        )  # fmt: skip
    return OpenQuestion(
        "What does each corner of this picture show?",
        f"The top left shows {a}. The top right shows {b}. "
        f"The bottom left shows {c}. The bottom right shows {d}.",
        reference, "detail",
    )  # fmt: skip


def _complex(digits: NDArray[np.int64], rng: np.random.Generator) -> OpenQuestion | None:
    kind = int(rng.integers(3))
    if kind == 0:
        word, lines = (("row", _ROWS), ("column", _COLUMNS))[rng.integers(2)]
        pairs = [_pair(digits, places) for _, places in lines]
        sums = [sum(pair) for pair in pairs]
        if sums[0] == sums[1]:
            return None
        larger = lines[sums.index(max(sums))][0]
        added = " and ".join(f"{a} plus {b} is {a + b}" for a, b in pairs)
        return OpenQuestion(
            f"Which {word} has the larger sum, and why?",
            f"{added}. So the {larger} has the larger sum.",
            f"{sums[0]}<AND>{sums[1]}<AND>{larger}", "complex",
        )  # fmt: skip
    if kind == 1:
        extreme = _one_extreme(digits, min)
        return extreme and OpenQuestion(
            "Which digit would come first if all were sorted?",
            f"The smallest digit comes first. It is {extreme[0]}, at the {extreme[1]}.",
            f"{extreme[0]}<AND>{extreme[1]}", "complex",
        )  # fmt: skip
    digit = int(digits.max())
    parity = ("even", "odd")[digit % 2]
    return OpenQuestion(
        "Is the largest digit even or odd? Explain.",
        f"The largest digit is {digit}. It is {parity}.",
        f"{digit}<AND>{parity}", "complex",
    )  # fmt: skip


def caption(digits: NDArray[np.int64]) -> str:
    """Return the caption of a picture of ``digits`` (shape ``(4,)``, all shown)."""
    a, b, c, d = (int(digit) for digit in digits)
    return f"Four handwritten digits: {a} and {b} are above {c} and {d}."
