"""Which option an answer names."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.choice import HARNESSES, letter

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "answers.json").read_text()
)
PIECES = (
    *("A", "B", "C", "D", "E", "F", "Z", "a", "b", "red", "Blue", "\N{KELVIN SIGN}", "\ufb06"),
    *(" ", ".", ". ", ", ", "\n", ")", "The answer is ", "the answer is ", "Answer: "),
    *("A. ", "C. ", "The answer is B", "The answer is D. "),
)

harnesses = st.sampled_from(HARNESSES)


def wins(text: str, answer: int, harness: str, choices: int) -> bool:
    """Say whether ``text`` is right where ``answer`` is: the question the scripts put."""
    text = text.strip()
    right = string.ascii_uppercase[answer]
    if harness == "lmms-eval":
        prefix = re.match(r"(.)\.", text, re.DOTALL)
        if text.lower() == right.lower():
            return True
        return bool(
            prefix and prefix[1] == prefix[1].upper() != prefix[1].lower() == right.lower()
        )
    sentence = re.compile(r"The answer is ([A-Z])[^\n]")
    if text in "ABCDE" and len(text) == 1:
        named = text
    elif re.match(r"[ABCDE]\. ", text):
        named = text[0]
    elif len(re.split(sentence, text)) == 3:  # before, letter, after
        named = re.split(sentence, text)[1]
    else:
        named = "none"
    return named == right and answer < min(5, choices)


@pytest.mark.parametrize(("text", "choices", "llava", "lmms_eval"), GOLDEN["letters"])
def test_answers_are_read_as_the_published_scripts_read_them(
    text: str, choices: int, llava: int | None, lmms_eval: int | None
) -> None:
    assert (letter(text, choices), letter(text, choices, "lmms-eval")) == (llava, lmms_eval)


@pytest.mark.parametrize("harness", HARNESSES)
@pytest.mark.parametrize("seed", range(4))
def test_the_index_is_the_one_answer_that_the_rule_calls_right(seed: int, harness: str) -> None:
    stream = np.random.default_rng(seed)
    named = 0
    for _ in range(500):
        text = "".join(stream.choice(PIECES, size=stream.integers(4)))
        choices = int(stream.integers(1, 8))
        right = [index for index in range(choices) if wins(text, index, harness, choices)]
        assert len(right) <= 1, text
        assert letter(text, choices, harness) == (right[0] if right else None), text
        named += len(right)
    assert named > 30


@given(st.text(), st.integers(1, 26), harnesses)
def test_an_index_is_always_one_of_the_question(text: str, choices: int, harness: str) -> None:
    index = letter(text, choices, harness)
    assert index is None or 0 <= index < choices


@given(st.text("ABFab. Theanswr\n"), st.integers(1, 26), harnesses, st.text(" \n\t"))
def test_white_space_around_an_answer_does_not_count(
    text: str, choices: int, harness: str, space: str
) -> None:
    assert letter(space + text + space, choices, harness) == letter(text, choices, harness)


@given(st.text("ABCDEF. Theanswris\n"), st.integers(1, 26), st.integers(1, 26), harnesses)
def test_the_number_of_options_only_decides_what_is_outside(
    text: str, one: int, other: int, harness: str
) -> None:
    most = letter(text, max(one, other), harness)
    inside = most if most is not None and most < min(one, other) else None
    assert letter(text, min(one, other), harness) == inside


def test_every_option_can_be_named() -> None:
    letters = string.ascii_uppercase
    assert [letter(name, 26, "lmms-eval") for name in letters] == list(range(26))
    assert [letter(name, 26) for name in letters] == [*range(5), *[None] * 21]  # A to E only


def test_an_unknown_harness_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TaskError, match="Unknown harness 'vlmevalkit'") as error:
        letter("A", 4, "vlmevalkit")
    assert error.value.hint == "Use one of llava, lmms-eval."


@pytest.mark.parametrize("choices", [-1, 0, 27])
def test_an_impossible_number_of_options_is_refused(choices: int) -> None:
    with pytest.raises(TaskError, match=f"cannot have {choices} options"):
        letter("A", choices)
