"""Parsing of the option that an answer names."""

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
from effllava_optuna.tasks.scoring.multiple_choice import HARNESSES, parse_choice

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "answers.json").read_text()
)
PIECES = (
    *("A", "B", "C", "D", "E", "F", "Z", "a", "b", "red", "Blue", "\N{KELVIN SIGN}", "\ufb06"),
    *(" ", ".", ". ", ", ", "\n", ")", "The answer is ", "the answer is ", "Answer: "),
    *("A. ", "C. ", "The answer is B", "The answer is D. "),
)

harnesses = st.sampled_from(HARNESSES)


def is_correct(text: str, answer: int, harness: str, choices: int) -> bool:
    """Return whether ``text`` is correct for ``answer``, as the scripts compute it."""
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
    options = string.ascii_uppercase[: max(5, choices)]  # of the script: A to E, an argument
    if text in options and len(text) == 1:
        named = text
    elif re.match(rf"[{options}]\. ", text):
        named = text[0]
    elif len(re.split(sentence, text)) == 3:  # before, letter, after
        named = re.split(sentence, text)[1]
    else:
        named = "none"
    return named == right and answer < choices


@pytest.mark.parametrize(("text", "choices", "llava", "lmms_eval"), GOLDEN["letters"])
def test_answers_are_parsed_as_by_the_published_scripts(
    text: str, choices: int, llava: int | None, lmms_eval: int | None
) -> None:
    assert (parse_choice(text, choices), parse_choice(text, choices, "lmms-eval")) == (
        llava,
        lmms_eval,
    )


@pytest.mark.parametrize("harness", HARNESSES)
@pytest.mark.parametrize("seed", range(4))
def test_the_index_is_the_only_answer_for_which_the_text_is_correct(
    seed: int, harness: str
) -> None:
    stream = np.random.default_rng(seed)
    n_named = 0
    for _ in range(500):
        text = "".join(stream.choice(PIECES, size=stream.integers(4)))
        choices = int(stream.integers(1, 8))
        right = [index for index in range(choices) if is_correct(text, index, harness, choices)]
        assert len(right) <= 1, text
        assert parse_choice(text, choices, harness) == (right[0] if right else None), text
        n_named += len(right)
    assert n_named > 30


@pytest.mark.parametrize("harness", HARNESSES)
@pytest.mark.parametrize("choices", range(2, 27))
def test_a_model_that_names_every_option_in_a_usual_form_scores_one(
    choices: int, harness: str
) -> None:
    for index, letter in enumerate(string.ascii_uppercase[:choices]):
        forms = [letter, f"{letter}. a magnet"]
        forms += [f"The answer is {letter}."] if harness == "llava" else [letter.lower()]
        assert {parse_choice(form, choices, harness) for form in forms} == {index}


@given(st.text(), st.integers(1, 26), harnesses)
def test_the_index_is_always_within_the_options(text: str, choices: int, harness: str) -> None:
    index = parse_choice(text, choices, harness)
    assert index is None or 0 <= index < choices


def test_every_option_can_be_named() -> None:
    letters = string.ascii_uppercase
    assert [parse_choice(name, 26, "lmms-eval") for name in letters] == list(range(26))
    assert [parse_choice(name, 26) for name in letters] == list(range(26))


def test_an_unknown_harness_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TaskError, match="Unknown harness 'vlmevalkit'") as error:
        parse_choice("A", 4, "vlmevalkit")
    assert error.value.hint == "Use one of llava, lmms-eval."


@pytest.mark.parametrize("choices", [-1, 0, 27])
def test_an_impossible_number_of_options_is_refused(choices: int) -> None:
    with pytest.raises(TaskError, match=f"cannot have {choices} options"):
        parse_choice("A", choices)
