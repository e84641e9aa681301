"""Scores of free text against references, without a judge.

Benchmarks of free text, such as MM-Vet and LLaVA-Bench, are scored by a large language model. The
scores of this module are deterministic and need no model, as a search requires. They are proxies:
do not report them under the name of a benchmark.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.scoring.short_answers import NUMBER_WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

_ARTICLES = frozenset({"a", "an", "the"})
# Chinese characters and Japanese syllables: these scripts put no space between words.
_UNSPACED = re.compile(
    "([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)
_IN_NUMBERS = frozenset("-.,:/")
_LETTER = r"[^\s\-.,:/]"
_WORD = re.compile(
    rf"(?:(?<!\S)-)?\d+(?:[.,:/]\d+)*{_LETTER}*|(?<!\S)-?\.\d+{_LETTER}*|{_LETTER}+"
)
_GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"(-?)(\d*)\.(\d*?)0*")


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Compute the F1 of the words of ``prediction`` and of the best of ``references``.

    This is the F1 of two bags of words after SQuAD (Rajpurkar et al. 2016,
    ``evaluate-v2.0.py``): case, punctuation and English articles are ignored, and a repeated word
    counts as often as both texts contain it. On ASCII texts the value equals that of the script.
    Beyond ASCII, punctuation is that of Unicode, as in MLQA (Lewis et al. 2020), compatible
    characters are equal (NFKC), and each Chinese or Japanese character is a word.

    Args:
        prediction: The generated answer.
        references: Correct answers, at least one.

    Returns:
        In [0, 1]. If neither text has words: 1. If only one of them has words: 0.

    Raises:
        TaskError: There are no references.

    >>> token_f1("A red bus!", ["The bus", "a car"])
    0.6666666666666666
    """
    if not references:
        raise TaskError(
            "A prediction cannot be scored without references.",
            hint="Score only samples that have a reference.",
        )
    words = _bag_of_words(prediction)
    return max(_f1(words, _bag_of_words(reference)) for reference in references)


def and_or_score(prediction: str, reference: str) -> float:
    """Compute the fraction of ``reference`` that ``prediction`` contains.

    References of MM-Vet (Yu et al. 2024) join required parts by ``<AND>`` and alternatives by
    ``<OR>``. The score of an alternative is the fraction of its parts that the prediction
    contains; the best alternative counts. ``<AND>`` binds more tightly. The benchmark does not
    define the precedence, since none of its 218 references has both (``mm-vet.json`` of
    yuweihao/MM-Vet_data: 11 have ``<AND>``, 26 ``<OR>``). A reference that is a sentence counts
    only if the prediction contains it word for word: use :func:`token_f1` for these.

    The prediction contains a part if it contains its words in sequence. Words are compared as a
    whole: ``13`` does not contain ``3``. Case, punctuation and apostrophes are ignored. Numbers
    keep their sign and decimals and are compared by value: ``$14.80`` equals ``14.8``, ``2,500``
    equals ``2500``, ``two`` equals ``2``. Other digits with a comma, colon or slash between them
    are compared as text. Articles are kept, since ``sample A`` is a reference. Each Chinese or
    Japanese character is a word.

    Args:
        prediction: The generated answer.
        reference: One annotation, with or without ``<AND>`` and ``<OR>``.

    Returns:
        In [0, 1]. Parts and alternatives without words are ignored. If none is left: 1 if the
        prediction has no words either, else 0.

    >>> and_or_score("x = -1", "-1<AND>-5"), and_or_score("It is sunny.", "clear<OR>sunny")
    (0.5, 1.0)
    """
    words = _spaced_words(prediction)
    alternatives = [
        parts
        for alternative in reference.split("<OR>")
        if (
            parts := [
                spaced for part in alternative.split("<AND>") if (spaced := _spaced_words(part))
            ]
        )
    ]
    if not alternatives:
        return float(not words)
    return max(sum(part in words for part in parts) / len(parts) for parts in alternatives)


def _fold(text: str) -> str:
    """Remove differences of case and of Unicode form, and separate Chinese characters."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _UNSPACED.sub(r" \1 ", folded)


def _bag_of_words(text: str) -> Counter[str]:
    """Count the words of ``text`` after the normalisation of SQuAD."""
    kept = "".join(
        sign
        for sign in _fold(text)
        if sign not in string.punctuation and not unicodedata.category(sign).startswith("P")
    )
    return Counter(word for word in kept.split() if word not in _ARTICLES)


def _f1(one: Counter[str], other: Counter[str]) -> float:
    """Return the harmonic mean of precision and recall, which is symmetric."""
    words = one.total() + other.total()
    return 2 * (one & other).total() / words if words else 1.0


def _spaced_words(text: str) -> str:
    """Return the words of ``text`` with a space before and after each; empty if there are none."""
    plain = _fold(text).replace("\u2212", "-").replace("'", "").replace("\u2019", "")
    separated = "".join(
        sign if sign in _IN_NUMBERS or unicodedata.category(sign)[0] in "LMN" else " "
        for sign in plain
    )
    words = [_canonical_number(word) for word in _WORD.findall(separated)]
    return f" {' '.join(words)} " if words else ""


def _canonical_number(word: str) -> str:
    """Return the same text for equal numbers, and any other word unchanged."""
    if _GROUPED.fullmatch(word):
        word = word.replace(",", "")
    if decimal := _DECIMAL.fullmatch(word):
        sign, whole, part = decimal.groups()
        return f"{sign}{whole or 0}{'.' if part else ''}{part}"
    return NUMBER_WORDS.get(word, word)
