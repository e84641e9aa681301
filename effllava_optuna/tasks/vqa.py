"""Score short answers to questions about pictures against those of ten people.

The accuracy is that of VQA (Antol et al. 2015) as VizWiz (Gurari et al. 2018) uses it: an answer
counts in full where at least three other people gave it. Published figures differ in how texts are
made comparable; both ways are here, and a figure belongs to the one that it was made by.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from effllava_optuna.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

NORMALISATIONS = ("evalai", "vizwiz")
"""The ways in which answers can be made comparable."""

NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
"""The numbers that people write as words, as digits."""

_DIGITS = {"none": "0", **NUMBER_WORDS}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_GROUPED = re.compile(r"\d,\d")
# Upstream's look-behind is misspelt and always holds, so that a digit before the dot saves
# nothing; and its flag re.UNICODE stands where the count belongs, so that only 32 dots can go.
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
        word[:place] + word[place + 1 :]: word
        for word in _MORE_APOSTROPHES.split()
        for place, sign in enumerate(word)
        if sign == "'"
    },
    "somebody'd": "somebodyd",  # the one entry that upstream has the wrong way round
}
# The table of VizWiz has typographic apostrophes in all but these.
_STRAIGHT = """
    ain't aren't can't could've couldn't we've where's who've couldn'tve hadn'tve
"""


def _curled(word: str) -> str:
    return word if word in _STRAIGHT.split() else word.replace("'", "\u2019")


_CURLY_APOSTROPHES = {_curled(word): _curled(whole) for word, whole in _APOSTROPHES.items()}


def normalised(text: str, normalisation: str = "evalai") -> str:
    """Make ``text`` comparable: no case, punctuation or articles, digits for number words.

    ``"evalai"`` is what ``llava/eval/m4c_evaluator.py`` of haotian-liu/LLaVA does, and
    ``lmms_eval/tasks/_task_utils/vqa_eval_metric.py`` of EvolvingLMMs-Lab/lmms-eval; ``"vizwiz"``
    is what the VizWiz API does to a prediction (``vqaEval.py`` by Qing Li). Both take a mark out
    wherever it stands if it is beside a space somewhere, and else put a space in its place. They
    differ in this:

    * ``"evalai"`` first takes out commas and question marks, and cuts ``'s`` off.
    * ``"vizwiz"`` takes out every mark of a text that has a comma between digits.
    * ``"vizwiz"`` restores lost apostrophes as typographic ones, but for a few words, so that
      ``dont`` matches no answer that was typed with a plain apostrophe.

    These oddities are kept, and so is that only the first 32 full stops go: figures can be
    compared only if they were made by one rule.

    Args:
        text: An answer.
        normalisation: One of :data:`NORMALISATIONS`.

    Raises:
        TaskError: The normalisation is unknown.

    >>> normalised("The two dogs.")
    '2 dogs'
    """
    _check(normalisation)
    if normalisation == "vizwiz":
        return _words(_plain(text), _CURLY_APOSTROPHES)
    lowered = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _words(_plain(lowered), _APOSTROPHES)


def vizwiz_accuracy(
    prediction: str, answers: Sequence[str], normalisation: str = "evalai"
) -> float:
    """Score ``prediction`` by the people who gave it as their answer.

    Mean over the people of ``min(1, matches / 3)``, where the matches are among the answers of
    the *others*: each person is left out by position, so that equal answers are still several. Of
    ten answers 1, 2, 3 and 4 matches give 0.3, 0.6, 0.9 and 1. One answer alone always gives 0.

    With ``"evalai"`` both sides are normalised, with ``"vizwiz"`` only the prediction. That a
    question has no answer is an answer like any other: a model that always says
    ``"unanswerable"`` scores high, so report that baseline too.

    Args:
        prediction: What the model wrote.
        answers: What people wrote, commonly ten; none of them is changed.
        normalisation: One of :data:`NORMALISATIONS`; see :func:`normalised`.

    Returns:
        In [0, 1]; does not depend on the order of ``answers``.

    Raises:
        TaskError: There are no answers, or the normalisation is unknown.

    >>> vizwiz_accuracy("Two", ["2", "two", "two dogs"])
    0.4444444444444444
    """
    _check(normalisation)
    if not answers:
        raise TaskError(
            "A prediction was to be scored against no answers.",
            hint="Score only samples that have answers; the test split of VizWiz has none.",
        )
    given = normalised(prediction, normalisation)
    if normalisation == "evalai":
        answers = [normalised(answer, normalisation) for answer in answers]
    count, hits = len(answers), sum(answer == given for answer in answers)
    # Who gave it sees one match less than who did not; in thirds, so that no rounding adds up.
    thirds = hits * min(3, hits - 1) + (count - hits) * min(3, hits)
    return thirds / (3 * count)


def _check(normalisation: str) -> None:
    if normalisation not in NORMALISATIONS:
        raise TaskError(
            f"Unknown normalisation {normalisation!r}.",
            hint=f"Use one of {', '.join(NORMALISATIONS)}.",
        )


def _plain(text: str) -> str:
    """Take punctuation out, or put a space in its place."""
    text = text.strip().replace("\n", " ").replace("\t", " ")
    grouped = _GROUPED.search(text) is not None
    plain = text
    for mark in _PUNCTUATION:
        loose = grouped or f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if loose else " ")
    return _FULL_STOP.sub("", plain, count=_FULL_STOPS)


def _words(text: str, apostrophes: dict[str, str]) -> str:
    """Write numbers as digits, leave articles out, and restore apostrophes."""
    numbered = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(apostrophes.get(word, word) for word in numbered if word not in _ARTICLES)
