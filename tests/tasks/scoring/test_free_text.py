"""Scores of free text against references, without a judge."""

from __future__ import annotations

import re
import string
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.scoring.free_text import and_or_score, token_f1

if TYPE_CHECKING:
    from collections.abc import Collection

# Texts and their words: for `token_f1`, and for `and_or_score`.
PROSE = {
    "A": [],
    "the": [],
    "The,": [],
    "Red": ["red"],
    "red.": ["red"],
    "(bus)": ["bus"],
    "x-ray": ["xray"],
    "don't": ["dont"],
    "3.14": ["314"],
    "two": ["two"],
    "!": [],
    "$5+": ["5"],
    "5": ["5"],
    "\u2102": ["c"],
    "c": ["c"],
    "caf\xe9": ["caf\xe9"],
    "cafe\u0301": ["caf\xe9"],
    "\xabSTRASSE\xbb": ["strasse"],
    "Stra\xdfe": ["strasse"],
    "\u4e2d\u6587\u3002": ["\u4e2d", "\u6587"],
}
PARTS = {
    "A": ["a"],
    "Red": ["red"],
    "red.": ["red"],
    "x-ray": ["x", "ray"],
    "don't": ["dont"],
    "don\u2019t": ["dont"],
    "3": ["3"],
    "THREE": ["3"],
    "3.0": ["3"],
    "13": ["13"],
    "-3": ["-3"],
    "=3": ["3"],
    "$14.80": ["14.8"],
    "14.8,": ["14.8"],
    "14,8": ["14,8"],
    "2,500": ["2500"],
    "2500.00": ["2500"],
    ".75": ["0.75"],
    "0.75": ["0.75"],
    "-0.750": ["-0.75"],
    "3/4": ["3/4"],
    "5:30PM": ["5:30pm"],
    "88%": ["88"],
    "1-3": ["1", "3"],
    "v1.5": ["v1", "5"],
    "5": ["5"],
    "S3302CD": ["s3302cd"],
    "\u22125": ["-5"],
    "!": [],
    "\u4e2d\u6587": ["\u4e2d", "\u6587"],
    "\u0915\u093e": ["\u0915\u093e"],
    "\u0915": ["\u0915"],
}

ascii_text = st.text(string.printable, max_size=30)


def squad_f1(prediction: str, reference: str) -> float:
    """Apply the published rule of SQuAD 2.0 to ASCII texts."""

    def tokens(text: str) -> list[str]:
        text = re.sub(f"[{re.escape(string.punctuation)}]", "", text.lower())
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    return bag_f1(tokens(prediction), tokens(reference))


def bag_f1(prediction: list[str], wanted: list[str]) -> float:
    """Count shared words by removing them from a list."""
    if not prediction or not wanted:
        return float(prediction == wanted)
    left = list(wanted)
    for word in prediction:
        if word in left:
            left.remove(word)
    shared = len(wanted) - len(left)
    precision, recall = shared / len(prediction), shared / len(wanted)
    return 2 * precision * recall / (precision + recall) if shared else 0.0


def contained(part: list[str], words: list[str]) -> bool:
    """Compare ``part`` with the words at every position."""
    return any(words[place : place + len(part)] == part for place in range(len(words)))


def random_words(stream: np.random.Generator, table: Collection[str], most: int) -> list[str]:
    return [str(word) for word in stream.choice(list(table), size=stream.integers(most + 1))]


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("the cat sat", ["the cat stood up"], 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)),
        ("red red bus", ["red bus"], 0.8),  # 2 of 3 words and 2 of 2: 2 * 2 / (3 + 2)
        ("bus", ["a car", "The BUS!", "red bus"], 1.0),  # the best reference counts
        ("", ["a", "bus"], 1.0),  # articles are ignored: both are empty
        ("the", ["bus"], 0.0),
        ("bus", ["?"], 0.0),
        ("$5 + tax = ~6", ["5 tax 6"], 1.0),  # ASCII symbols go too
        ("caf\xe9", ["CAFE\u0301"], 1.0),
        ("\u4e2d\u6587", ["\u4e2d"], 2 / 3),
    ],
)
def test_the_overlap_is_that_of_the_two_bags_of_words(
    prediction: str, references: list[str], expected: float
) -> None:
    assert token_f1(prediction, references) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_a_slow_count_of_shared_words_agrees(seed: int) -> None:
    stream = np.random.default_rng(seed)
    partial = 0
    for _ in range(250):
        texts = [random_words(stream, PROSE, 6) for _ in range(stream.integers(2, 5))]
        bags = [[token for word in text for token in PROSE[word]] for text in texts]
        expected = max(bag_f1(bags[0], bag) for bag in bags[1:])
        prediction, *references = [" ".join(text) for text in texts]
        assert token_f1(prediction, references) == pytest.approx(expected)
        partial += 0 < expected < 1
    assert partial > 100


@given(ascii_text, ascii_text)
def test_on_ascii_the_overlap_equals_that_of_squad(one: str, other: str) -> None:
    assert token_f1(one, [other]) == pytest.approx(squad_f1(one, other))


@given(st.text(), st.lists(st.text(), min_size=1, max_size=4))
def test_the_overlap_is_in_the_unit_interval_and_independent_of_order(
    text: str, references: list[str]
) -> None:
    score = token_f1(text, references)
    assert 0 <= score <= 1
    assert token_f1(text, references[::-1]) == score
    assert token_f1(text, references * 2) == score
    assert token_f1(text, [*references, text]) == 1
    assert token_f1(text, references[:1]) == token_f1(references[0], [text])


@given(st.text(), st.text())
def test_case_and_form_do_not_change_an_overlap(text: str, reference: str) -> None:
    score = token_f1(text, [reference])
    assert token_f1(unicodedata.normalize("NFD", text), [reference]) == score
    assert token_f1(text.casefold(), [reference]) == score
    assert token_f1(f"\u2026{text}\xbf", [f"({reference})"]) == score


def test_scoring_against_no_references_is_refused() -> None:
    with pytest.raises(TaskError, match="cannot be scored without references"):
        token_f1("yes", [])


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("x = 3", 0),
        ("x = -1", 0.5),
        ("x = -5", 0.5),
        ("x = -5 or 5", 0.5),
        ("x = -1 or x = -5", 1),
    ],
)
def test_the_examples_in_the_prompt_of_mm_vet_get_the_scores_of_the_prompt(
    prediction: str, expected: float
) -> None:
    # Prompt of mm-vet_evaluator.py, yuweihao/MM-Vet@acde843e02dae30047bb456ee4a8ab28dee7e0ae.
    assert and_or_score(prediction, "-1<AND>-5") == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        # References of yuweihao/MM-Vet_data@2df56155a024929e29ebc01efe288d67eca17f62.
        ("d is 5/4.", "1.25<OR>=1.25<OR>5/4", 1),
        ("It costs $14.80.", "14.8<OR>14,8", 1),
        ("25,80 EUR", "25.8<OR>25,8", 0),  # a decimal comma is not read as a number
        ("2,500 dollars", "2500<OR>2,500", 1),
        ("12500", "2500<OR>2,500", 0),
        ("eight dollars", "eight<OR>8.0", 1),
        ("step 3", "third<OR> 3", 1),
        ("step 13", "third<OR> 3", 0),
        ("An oven.", "oven<AND>dishwasher", 0.5),
        ("Dishwasher and oven", "oven<AND>dishwasher", 1),
        ("a sunny day", "clear<OR>sunny", 1),
        ("Sample B", "sample A", 0),
        ("There are five.", "5", 1),
        ("\u4ed6\u9a6c\u66f3\u8457\u4f5c", "\u9a6c\u66f3<AND>\u8457<AND>\u5149", 2 / 3),
        # No reference there has both; AND binds more tightly.
        ("a c", "a<AND>b<OR>c", 1),  # c alone; were OR the tighter, a and (b or c): 1 too
        ("c", "a<AND>b<OR>c", 1),  # were OR the tighter: 0.5
        ("a", "a<AND>b<OR>c<AND>d<AND>e", 0.5),
    ],
)
def test_the_best_alternative_counts_by_its_parts(
    prediction: str, reference: str, expected: float
) -> None:
    assert and_or_score(prediction, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [("", "", 1), ("?", "<OR>", 1), ("yes", "", 0), ("", "yes", 0), ("a", "a<AND>", 1)],
)
def test_parts_without_words_do_not_count(prediction: str, reference: str, expected: int) -> None:
    assert and_or_score(prediction, reference) == expected


@pytest.mark.parametrize("seed", range(4))
def test_a_search_at_every_position_agrees(seed: int) -> None:
    stream = np.random.default_rng(seed)
    partial = 0
    for _ in range(250):
        text = random_words(stream, PARTS, 12)
        tokens = [token for word in text for token in PARTS[word]]
        reference, best = [], 0.0 if tokens else 1.0
        fractions = []
        for _ in range(stream.integers(1, 4)):
            vocabulary = [*text[:4], *stream.choice(list(PARTS), size=4)]
            parts = [random_words(stream, vocabulary, 2) for _ in range(stream.integers(1, 4))]
            reference.append("<AND>".join(" ".join(part) for part in parts))
            token_parts = [[token for word in part for token in PARTS[word]] for part in parts]
            hits = [contained(part, tokens) for part in token_parts if part]
            fractions += [sum(hits) / len(hits)] if hits else []
        best = max(fractions) if fractions else best
        assert and_or_score(" ".join(text), "<OR>".join(reference)) == pytest.approx(best)
        partial += 0 < best < 1
    assert partial > 30


@given(st.text(), st.text())
def test_any_two_texts_have_a_score_in_the_unit_interval(text: str, reference: str) -> None:
    assert 0 <= and_or_score(text, reference) <= 1
    assert and_or_score(text, text.replace("<", "")) in (0, 1)
    assert and_or_score(text.casefold(), reference) == and_or_score(text, reference)
