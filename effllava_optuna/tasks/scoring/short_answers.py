"""Scores of short answers to questions about images, against the answers of ten people.

The accuracy is that of VQA (Antol et al. 2015) as VizWiz (Gurari et al. 2018) uses it: an answer
that at least three other people gave is fully correct. Published results differ in how texts are
normalised. Both normalisations are implemented here; report which one a score was computed with.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from effllava_optuna.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

NORMALISATIONS = ("evalai", "vizwiz")
"""The implemented normalisations of answers."""

NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
"""Digits by number word."""

_DIGITS = {"none": "0", **NUMBER_WORDS}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_GROUPED = re.compile(r"\d,\d")
# As upstream: its look-behind is misspelt and always matches, so that a dot after a digit is
# removed, too; and its flag re.UNICODE (32) is passed as the count of replacements.
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS = 32

_ONE_APOSTROPHE = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
    how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
    oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
    something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
    wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
    who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're
    you've
"""
_MORE_APOSTROPHES = """
    couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've
    someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll
    y'all'd've you'd've
"""
_APOSTROPHES = {
    **{word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()},
    **{
        word[:position] + word[position + 1 :]: word
        for word in _MORE_APOSTROPHES.split()
        for position, sign in enumerate(word)
        if sign == "'"
    },
    "somebody'd": "somebodyd",  # the one entry that upstream has the wrong way round
}
# The table of VizWiz has typographic apostrophes in all words but these.
_STRAIGHT = """
    ain't aren't can't could've couldn't we've where's who've couldn'tve hadn'tve
"""


def _with_curly_apostrophes(word: str) -> str:
    return word if word in _STRAIGHT.split() else word.replace("'", "\u2019")


_CURLY_APOSTROPHES = {
    _with_curly_apostrophes(word): _with_curly_apostrophes(whole)
    for word, whole in _APOSTROPHES.items()
}


def normalise_answer(text: str, normalisation: str = "evalai") -> str:
    """Normalise ``text``: no case, punctuation or articles, digits instead of number words.

    ``"evalai"`` is the normalisation of ``llava/eval/m4c_evaluator.py`` of haotian-liu/LLaVA and
    of ``lmms_eval/tasks/_task_utils/vqa_eval_metric.py`` of EvolvingLMMs-Lab/lmms-eval;
    ``"vizwiz"`` is what the VizWiz API does to a prediction (``vqaEval.py`` by Qing Li). Both
    remove a punctuation mark everywhere if it is next to a space anywhere in the text, and
    otherwise replace it by a space. They differ in this:

    * ``"evalai"`` first removes commas and question marks, and separates ``'s``.
    * ``"vizwiz"`` removes every mark of a text that has a comma between digits.
    * ``"vizwiz"`` restores missing apostrophes as typographic ones, except in a few words, so that
      ``dont`` does not match an answer that was typed with a plain apostrophe.

    These quirks of the originals are kept, also that only the first 32 full stops are removed:
    scores are comparable only if they were computed by the same rule.

    Args:
        text: An answer.
        normalisation: One of :data:`NORMALISATIONS`.

    Raises:
        TaskError: The normalisation is unknown.

    >>> normalise_answer("The two dogs.")
    '2 dogs'
    """
    _check_normalisation(normalisation)
    if normalisation == "vizwiz":
        return _normalise_words(_remove_punctuation(text), _CURLY_APOSTROPHES)
    lowered = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _normalise_words(_remove_punctuation(lowered), _APOSTROPHES)


def vizwiz_accuracy(
    prediction: str, answers: Sequence[str], normalisation: str = "evalai"
) -> float:
    """Compute the VizWiz accuracy of ``prediction``: how many people gave the same answer.

    It is the mean over the people of ``min(1, matches / 3)``, where ``matches`` counts equal
    answers of the *other* people. Each person is left out by position, not by text. Of ten
    answers, 1, 2, 3 and 4 matches give 0.3, 0.6, 0.9 and 1. A single answer always gives 0.

    With ``"evalai"`` both sides are normalised, with ``"vizwiz"`` only the prediction.
    ``"unanswerable"`` is an answer like any other, and always giving it scores high: report that
    baseline, too.

    Args:
        prediction: The generated answer.
        answers: The answers of people, commonly ten.
        normalisation: One of :data:`NORMALISATIONS`; see :func:`normalise_answer`.

    Returns:
        In [0, 1]; does not depend on the order of ``answers``.

    Raises:
        TaskError: There are no answers, or the normalisation is unknown.

    >>> vizwiz_accuracy("Two", ["2", "two", "two dogs"])
    0.4444444444444444
    """
    _check_normalisation(normalisation)
    if not answers:
        raise TaskError(
            "A prediction cannot be scored without answers.",
            hint="Score only samples that have answers; the test split of VizWiz has none.",
        )
    normalised = normalise_answer(prediction, normalisation)
    if normalisation == "evalai":
        answers = [normalise_answer(answer, normalisation) for answer in answers]
    count, hits = len(answers), sum(answer == normalised for answer in answers)
    # A person who gave the answer has one match less among the others than a person who did not.
    # The sum is in thirds, hence exact.
    thirds = hits * min(3, hits - 1) + (count - hits) * min(3, hits)
    return thirds / (3 * count)


def _check_normalisation(normalisation: str) -> None:
    if normalisation not in NORMALISATIONS:
        raise TaskError(
            f"Unknown normalisation {normalisation!r}.",
            hint=f"Use one of {', '.join(NORMALISATIONS)}.",
        )


def _remove_punctuation(text: str) -> str:
    """Remove punctuation, or replace it by spaces."""
    text = text.strip().replace("\n", " ").replace("\t", " ")
    grouped = _GROUPED.search(text) is not None
    plain = text
    for mark in _PUNCTUATION:
        removed = grouped or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if removed else " ")
    return _FULL_STOP.sub("", plain, count=_FULL_STOPS)


def _normalise_words(text: str, apostrophes: dict[str, str]) -> str:
    """Convert number words to digits, remove articles, and restore apostrophes."""
    numbered = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(apostrophes.get(word, word) for word in numbered if word not in _ARTICLES)
