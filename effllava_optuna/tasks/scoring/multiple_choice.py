"""Parsing of the option that an answer to a multiple-choice question names.

The evaluation harnesses behind published ScienceQA results parse answers by different rules, so
that the same answers get different scores. Both rules are implemented here; report the name of
the harness with every score.
"""

from __future__ import annotations

import re

from effllava_optuna.errors import TaskError

HARNESSES = ("llava", "lmms-eval")
"""The evaluation harnesses whose parsing rules are implemented."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_INDEX = {letter: index for index, letter in enumerate(_LETTERS.lower())}
_LLAVA_OPTIONS = 5  # letters that the script of LLaVA accepts by default
# As upstream, the last dot matches any character, not only a full stop: "The answer is Blue"
# names B.
_LLAVA_SENTENCE = re.compile(r"The answer is ([A-Z]).")


def parse_choice(text: str, choices: int, harness: str = "llava") -> int | None:
    """Return the index of the option that ``text`` names, parsed as ``harness`` does.

    There is no guess: an answer that names no option, or an option that the question does not
    have, is wrong. White space around ``text`` is ignored.

    ``"llava"`` (``llava/eval/eval_science_qa.py`` of haotian-liu/LLaVA; ``model_vqa_science.py``
    strips the text before) accepts letters in this order: the bare letter; a letter followed by
    ``". "`` and more text; the letter of ``The answer is X`` and one further character, if the
    text contains that exactly once. The letters are an option of the script, A to E by default,
    as ScienceQA needs; for questions with more options they are extended to all of them.

    ``"lmms-eval"`` (``lmms_eval/tasks/scienceqa/utils.py`` of EvolvingLMMs-Lab/lmms-eval) accepts
    the bare letter in either case, or a capital letter followed by a dot and any text.

    Args:
        text: The generated answer.
        choices: Number of options of the question, 1 to 26.
        harness: One of :data:`HARNESSES`.

    Returns:
        The index, ``0 <= index < choices``; None if no option is named.

    Raises:
        TaskError: The harness is unknown, or the number of options is outside its range.

    >>> parse_choice("B. a magnet", 4), parse_choice("b", 4), parse_choice("b", 4, "lmms-eval")
    (1, None, 1)
    """
    if harness not in HARNESSES:
        raise TaskError(
            f"Unknown harness {harness!r}.", hint=f"Use one of {', '.join(HARNESSES)}."
        )
    if not 1 <= choices <= len(_INDEX):
        raise TaskError(
            f"A question cannot have {choices} options.", hint=f"Use 1 to {len(_INDEX)} options."
        )
    stripped = text.strip()
    letters = _LETTERS[: max(_LLAVA_OPTIONS, choices)]
    llava = harness == "llava"
    letter = _llava_letter(stripped, letters) if llava else _lmms_eval_letter(stripped)
    index = _INDEX.get(letter.lower())
    return index if index is not None and index < choices else None


def _llava_letter(text: str, letters: str) -> str:
    """Return the one of ``letters`` that ``text`` names, or an empty text."""
    if text and text[0] in letters and (len(text) == 1 or text[1:3] == ". "):
        return text[0]
    named: list[str] = _LLAVA_SENTENCE.findall(text)
    return named[0] if len(named) == 1 and named[0] in letters else ""


def _lmms_eval_letter(text: str) -> str:
    """Return the letter that ``text`` names, or an empty text."""
    return text[0] if len(text) == 1 or (text[1:2] == "." and text[0].isupper()) else ""
