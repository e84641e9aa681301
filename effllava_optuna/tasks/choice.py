"""Read the option that an answer to a multiple-choice question names.

The harnesses that published ScienceQA figures read answers by rules of their own, so that the same
answers give different scores. Both rules are here; name the rule wherever a figure is shown.
"""

from __future__ import annotations

import re

from effllava_optuna.errors import TaskError

HARNESSES = ("llava", "lmms-eval")
"""The rules by which an answer can be read."""

_INDEX = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
_LLAVA_LETTERS = frozenset("ABCDE")
# The last dot is no full stop but any character, as upstream: "The answer is Blue" names B.
_LLAVA_SENTENCE = re.compile(r"The answer is ([A-Z]).")


def letter(text: str, choices: int, harness: str = "llava") -> int | None:
    """Give the index of the option that ``text`` names, as ``harness`` reads it.

    Nothing is guessed: an answer that names no option, or an option that the question does not
    have, is wrong. White space around ``text`` never counts.

    ``"llava"`` (``llava/eval/eval_science_qa.py`` of haotian-liu/LLaVA; ``model_vqa_science.py``
    strips the text before) knows the letters A to E, and takes, in this order: the bare letter; a
    letter with ``". "`` and more behind it; the letter of ``The answer is X`` and one further
    character, if the text says that exactly once.

    ``"lmms-eval"`` (``lmms_eval/tasks/scienceqa/utils.py`` of EvolvingLMMs-Lab/lmms-eval) takes
    the bare letter in either case, or a capital with a dot behind it, whatever follows.

    Args:
        text: What the model wrote.
        choices: How many options the question has, 1 to 26.
        harness: One of :data:`HARNESSES`.

    Returns:
        The index, ``0 <= index < choices``; None where no option is named.

    Raises:
        TaskError: The harness is unknown, or no question has so many options.

    >>> letter("B. a magnet", 4), letter("b", 4), letter("b", 4, "lmms-eval")
    (1, None, 1)
    """
    if harness not in HARNESSES:
        raise TaskError(
            f"Unknown harness {harness!r}.", hint=f"Use one of {', '.join(HARNESSES)}."
        )
    if not 1 <= choices <= len(_INDEX):
        raise TaskError(
            f"A question cannot have {choices} options.", hint=f"Give it 1 to {len(_INDEX)}."
        )
    stripped = text.strip()
    named = _llava(stripped) if harness == "llava" else _lmms_eval(stripped)
    index = _INDEX.get(named.lower())
    return index if index is not None and index < choices else None


def _llava(text: str) -> str:
    """Give the letter that ``text`` names, or nothing."""
    if text[:1] in _LLAVA_LETTERS and (len(text) == 1 or text[1:3] == ". "):
        return text[0]
    said: list[str] = _LLAVA_SENTENCE.findall(text)
    return said[0] if len(said) == 1 and said[0] in _LLAVA_LETTERS else ""


def _lmms_eval(text: str) -> str:
    """Give the letter that ``text`` names, or nothing."""
    return text[0] if len(text) == 1 or (text[1:2] == "." and text[0].isupper()) else ""
