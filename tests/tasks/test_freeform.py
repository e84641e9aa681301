"""Free text against references, without a judge."""

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
from effllava_optuna.tasks.freeform import and_or, token_f1

if TYPE_CHECKING:
    from collections.abc import Collection

# What is written, and the words it is: for the overlap, and for containment.
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

words = st.lists(st.sampled_from([word for word, tokens in PARTS.items() if tokens]), min_size=1)
ascii_text = st.text(string.printable, max_size=30)


def squad_f1(prediction: str, reference: str) -> float:
    """Follow the published rule of SQuAD 2.0 on ASCII, one word at a time."""

    def tokens(text: str) -> list[str]:
        text = re.sub(f"[{re.escape(string.punctuation)}]", "", text.lower())
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    return bag_f1(tokens(prediction), tokens(reference))


def bag_f1(given_words: list[str], wanted: list[str]) -> float:
    """Cross shared words off a list."""
    if not given_words or not wanted:
        return float(given_words == wanted)
    left = list(wanted)
    for word in given_words:
        if word in left:
            left.remove(word)
    shared = len(wanted) - len(left)
    precision, recall = shared / len(given_words), shared / len(wanted)
    return 2 * precision * recall / (precision + recall) if shared else 0.0


def contained(part: list[str], words: list[str]) -> bool:
    """Try every place."""
    return any(words[place : place + len(part)] == part for place in range(len(words)))


def spelt(stream: np.random.Generator, table: Collection[str], most: int) -> list[str]:
    return [str(word) for word in stream.choice(list(table), size=stream.integers(most + 1))]


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("the cat sat", ["the cat stood up"], 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)),
        ("red red bus", ["red bus"], 0.8),  # 2 of 3 words and 2 of 2: 2 * 2 / (3 + 2)
        ("bus", ["a car", "The BUS!", "red bus"], 1.0),  # the best one counts
        ("", ["a", "bus"], 1.0),  # an article is no word: both are empty
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
def test_crossing_words_off_gives_the_same_overlap(seed: int) -> None:
    stream = np.random.default_rng(seed)
    partial = 0
    for _ in range(250):
        texts = [spelt(stream, PROSE, 6) for _ in range(stream.integers(2, 5))]
        bags = [[token for word in text for token in PROSE[word]] for text in texts]
        expected = max(bag_f1(bags[0], bag) for bag in bags[1:])
        given_text, *references = [" ".join(text) for text in texts]
        assert token_f1(given_text, references) == pytest.approx(expected)
        partial += 0 < expected < 1
    assert partial > 100


@given(ascii_text, ascii_text)
def test_on_ascii_the_overlap_is_that_of_squad(one: str, other: str) -> None:
    assert token_f1(one, [other]) == pytest.approx(squad_f1(one, other))


@given(st.text(), st.lists(st.text(), min_size=1, max_size=4))
def test_an_overlap_is_a_share_and_no_order_matters(text: str, references: list[str]) -> None:
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
    with pytest.raises(TaskError, match="against no references"):
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
def test_the_examples_that_the_judge_of_mm_vet_is_shown_score_the_same(
    prediction: str, expected: float
) -> None:
    # Prompt of mm-vet_evaluator.py, yuweihao/MM-Vet@acde843e02dae30047bb456ee4a8ab28dee7e0ae.
    assert and_or(prediction, "-1<AND>-5") == expected


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
    assert and_or(prediction, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [("", "", 1), ("?", "<OR>", 1), ("yes", "", 0), ("", "yes", 0), ("a", "a<AND>", 1)],
)
def test_parts_without_words_do_not_count(prediction: str, reference: str, expected: int) -> None:
    assert and_or(prediction, reference) == expected


@pytest.mark.parametrize("seed", range(4))
def test_trying_every_place_gives_the_same_containment(seed: int) -> None:
    stream = np.random.default_rng(seed)
    partial = 0
    for _ in range(250):
        text = spelt(stream, PARTS, 12)
        said = [token for word in text for token in PARTS[word]]
        reference, best = [], 0.0 if said else 1.0
        shares = []
        for _ in range(stream.integers(1, 4)):
            known = [*text[:4], *stream.choice(list(PARTS), size=4)]
            parts = [spelt(stream, known, 2) for _ in range(stream.integers(1, 4))]
            reference.append("<AND>".join(" ".join(part) for part in parts))
            wanted = [[token for word in part for token in PARTS[word]] for part in parts]
            found = [contained(part, said) for part in wanted if part]
            shares += [sum(found) / len(found)] if found else []
        best = max(shares) if shares else best
        assert and_or(" ".join(text), "<OR>".join(reference)) == pytest.approx(best)
        partial += 0 < best < 1
    assert partial > 30


@given(words, words, words)
def test_what_the_prediction_quotes_is_contained(
    before: list[str], part: list[str], after: list[str]
) -> None:
    assert and_or(" ".join([*before, *part, *after]), " ".join(part)) == 1


@given(st.lists(words, min_size=1, max_size=4), words)
def test_no_order_of_alternatives_or_parts_matters(
    parts: list[list[str]], said: list[str]
) -> None:
    text, spelt_parts = " ".join(said), [" ".join(part) for part in parts]
    every = and_or(text, "<AND>".join(spelt_parts))
    some = and_or(text, "<OR>".join(spelt_parts))
    assert every == and_or(text, "<AND>".join(spelt_parts[::-1]))
    assert some == and_or(text, "<OR>".join(spelt_parts[::-1]))
    assert 0 <= every <= some <= 1
    assert some == float(every > 0)


@given(st.text(), st.text())
def test_any_texts_have_a_share(text: str, reference: str) -> None:
    assert 0 <= and_or(text, reference) <= 1
    assert and_or(text, text.replace("<", "")) in (0, 1)
    assert and_or(text.casefold(), reference) == and_or(text, reference)
