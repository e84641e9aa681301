"""Scores of short answers against those of ten people."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.scoring.short_answers import (
    NORMALISATIONS,
    normalise_answer,
    vizwiz_accuracy,
)

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "answers.json").read_text()
)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
WORDS = (
    *("yes", "no", "unanswerable", "The", "a", "An", "none", "Zero", "TEN", "eleven", "cat's"),
    *("1,000", "2,500.50", "3.14", ".5", "5.", "1.2.3", "$5.99", "12:30", "U.S.", "x-ray", "a/b"),
    *("dont", "cant", "weve", "wont", "somebody'd", "couldn'tve", "twas", "caf\xe9", "\u4e2d"),
    *("0", "10", "can't", "don\u2019t", "'s", ",", "?", "-", "(b)", "...", "\u0663,\u0664"),
)
GAPS = (*(" " for _ in range(9)), "  ", "\n", "\t", "", ",", ";", " - ", "?", "\xa0")

# Of the table of contractions, what the corpus has: the official outputs for these words.
CONTRACTIONS = {
    text: {"evalai": evalai, "vizwiz": vizwiz}
    for text, evalai, vizwiz in (
        *(row for row in GOLDEN["normalised"] if " " not in row[0] and row[0].isascii()),
        ("dont", "don't", "don\u2019t"),  # from the golden "dont know"
        ("cant", "can't", "can't"),  # from the golden "cant see"
    )
    if text in {"dont", "cant", "weve", "wont", "somebody'd", "couldn'tve", "twas"}
}

normalisations = st.sampled_from(NORMALISATIONS)
short = st.text(st.sampled_from("ab1.,'- ?\u2019\n") | st.characters(), max_size=8)
answers = st.lists(st.sampled_from(["yes", "no", "Yes.", "2", "two", "", "a"]), min_size=1)


def slow_normalise_answer(text: str, normalisation: str) -> str:
    """Apply the rule character by character."""
    if normalisation == "evalai":
        text = "".join(sign for sign in text.lower() if sign not in ",?")
        pieces = text.split("'s")
        text = " 's".join(pieces)
    text = "".join(" " if sign in "\n\t" else sign for sign in text.strip())
    pairs = list(pairwise(text))
    grouped = any(
        mid == "," and left.isdecimal() and right.isdecimal()
        for left, mid, right in zip(text, text[1:], text[2:], strict=False)
    )
    unpointed = ""
    for sign in text:
        if sign not in ';/[]"{}()=+\\_-><@`,?!':
            unpointed += sign
        elif not (grouped or (sign, " ") in pairs or (" ", sign) in pairs):
            unpointed += " "
    plain, gone = "", 0
    for place, sign in enumerate(unpointed):
        if sign == "." and not unpointed[place + 1 : place + 2].isdecimal() and gone < 32:
            gone += 1
        else:
            plain += sign
    words = []
    for word in plain.lower().split():
        if word in NUMBERS:
            words.append(str(NUMBERS.index(word)))
        elif word == "none":
            words.append("0")
        elif word in CONTRACTIONS:
            words.append(CONTRACTIONS[word][normalisation])
        elif word not in ("a", "an", "the"):
            words.append(word)
    return " ".join(words)


def slow_accuracy(prediction: str, answers: list[str], normalisation: str) -> Fraction:
    """Average over the people, each compared with all others."""
    if normalisation == "evalai":
        answers = [slow_normalise_answer(answer, normalisation) for answer in answers]
    prediction = slow_normalise_answer(prediction, normalisation)
    accuracies = []
    for person in range(len(answers)):
        others = answers[:person] + answers[person + 1 :]
        accuracies.append(min(Fraction(1), Fraction(others.count(prediction), 3)))
    return sum(accuracies, Fraction(0)) / len(accuracies)


def random_answer(stream: np.random.Generator) -> str:
    """Return a random text that resembles an answer."""
    words = stream.choice(WORDS, size=stream.integers(5))
    return "".join(word + stream.choice(GAPS) for word in words)


@pytest.mark.parametrize(("text", "evalai", "vizwiz"), GOLDEN["normalised"])
def test_answers_are_normalised_as_the_published_scripts_do(
    text: str, evalai: str, vizwiz: str
) -> None:
    assert (normalise_answer(text), normalise_answer(text, "vizwiz")) == (evalai, vizwiz)


@pytest.mark.parametrize(("prediction", "answers", "evalai", "vizwiz"), GOLDEN["scores"])
def test_answers_are_scored_as_the_published_scripts_do(
    prediction: str, answers: list[str], evalai: float, vizwiz: float
) -> None:
    assert vizwiz_accuracy(prediction, answers) == pytest.approx(evalai, abs=1e-9)
    assert vizwiz_accuracy(prediction, answers, "vizwiz") == pytest.approx(vizwiz, abs=1e-9)


@pytest.mark.parametrize(
    ("matches", "expected"),
    [
        (0, 0.0),
        (1, 0.3),  # 9 people see 1 match: 9 * 1/3 / 10; the person who gave it sees none
        (2, 0.6),  # 8 see 2, and 2 see 1: (8 * 2/3 + 2 * 1/3) / 10
        (3, 0.9),  # 7 see 3, and 3 see 2: (7 + 3 * 2/3) / 10
        (4, 1.0),  # without any one person, 3 remain
        (10, 1.0),
    ],
)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_of_ten_answers_four_suffice(matches: int, expected: float, normalisation: str) -> None:
    answers = ["yes"] * matches + ["no"] * (10 - matches)
    assert vizwiz_accuracy("yes", answers, normalisation) == pytest.approx(expected)


def test_only_evalai_normalises_what_people_wrote() -> None:
    answers = ["The dog."] * 10
    assert vizwiz_accuracy("dog", answers) == 1
    assert vizwiz_accuracy("dog", answers, "vizwiz") == 0
    assert vizwiz_accuracy("The dog.", answers, "vizwiz") == 0  # although the texts are equal
    assert vizwiz_accuracy("The dog.", ["dog"] * 10, "vizwiz") == 1


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("seed", range(4))
def test_a_slow_implementation_of_the_rule_agrees(seed: int, normalisation: str) -> None:
    stream = np.random.default_rng(seed)
    scored = 0
    for _ in range(150):
        pool = [random_answer(stream) for _ in range(stream.integers(1, 4))]
        pool += [slow_normalise_answer(text, normalisation) for text in pool]
        for text in pool:
            assert normalise_answer(text, normalisation) == slow_normalise_answer(
                text, normalisation
            )
        answers = [str(answer) for answer in stream.choice(pool, size=stream.integers(1, 12))]
        expected = slow_accuracy(pool[0], answers, normalisation)
        assert vizwiz_accuracy(pool[0], answers, normalisation) == float(expected)
        scored += 0 < expected < 1
    assert scored > 50


@given(short, normalisations)
def test_a_slow_implementation_normalises_any_text_equally(text: str, normalisation: str) -> None:
    assert normalise_answer(text, normalisation) == slow_normalise_answer(text, normalisation)


@given(st.sampled_from(["yes", "two", "?"]), answers, normalisations, st.randoms())
def test_the_order_of_answers_does_not_matter(
    prediction: str, answers: list[str], normalisation: str, shuffle: Any
) -> None:
    before = list(answers)
    mixed = list(answers)
    shuffle.shuffle(mixed)
    score = vizwiz_accuracy(prediction, answers, normalisation)
    assert vizwiz_accuracy(prediction, mixed, normalisation) == score
    assert answers == before
    assert 0 <= score <= 1


def test_scoring_against_no_answers_is_refused() -> None:
    with pytest.raises(TaskError, match="cannot be scored without answers"):
        vizwiz_accuracy("yes", [])


def test_an_unknown_normalisation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TaskError, match="Unknown normalisation 'vqa2'") as error:
        normalise_answer("yes", "vqa2")
    assert error.value.hint == "Use one of evalai, vizwiz."
    with pytest.raises(TaskError, match="Unknown normalisation 'vqa2'"):
        vizwiz_accuracy("yes", ["yes"], "vqa2")
