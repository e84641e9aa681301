"""Score free text against references without a judge.

Benchmarks of free text, such as MM-Vet and LLaVA-Bench, are scored by a large language model. What
is here costs nothing and always says the same, which a search needs; it is a proxy of such a score
and never the score itself, and must not be reported under the name of a benchmark.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

from effllava_optuna.errors import TaskError
from effllava_optuna.tasks.vqa import NUMBER_WORDS

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
    """Measure the overlap of words with the best of ``references``: a proxy, no benchmark's score.

    The F1 of the two bags of words after SQuAD (Rajpurkar et al. 2016, ``evaluate-v2.0.py``):
    case, punctuation and English articles do not count, and a repeated word counts as often as
    it is in both. On ASCII texts the value is that of the script. Beyond ASCII, punctuation is
    Unicode's, as in MLQA (Lewis et al. 2020), characters that mean the same are one (NFKC), and
    each Chinese or Japanese character is a word of its own.

    Args:
        prediction: What the model wrote.
        references: Right answers, at least one.

    Returns:
        In [0, 1]. Where no words are left: 1 if on both sides, 0 if on one.

    Raises:
        TaskError: There are no references.

    >>> token_f1("A red bus!", ["The bus", "a car"])
    0.6666666666666666
    """
    if not references:
        raise TaskError(
            "A prediction was to be scored against no references.",
            hint="Score only samples that have a reference.",
        )
    given = _bag(prediction)
    return max(_f1(given, _bag(reference)) for reference in references)


def and_or(prediction: str, reference: str) -> float:
    """Say how much of ``reference`` the prediction contains: a proxy, no benchmark's score.

    References of MM-Vet (Yu et al. 2024) join parts that must all be there by ``<AND>``, and
    alternatives by ``<OR>``. The value is the share of its parts that the best alternative has in
    the prediction. ``<AND>`` binds more tightly; the benchmark leaves that open, since none of its
    218 references has both (``mm-vet.json`` of yuweihao/MM-Vet_data: 11 have ``<AND>``, 26
    ``<OR>``). A sentence as reference counts only if it is there word for word: use
    :func:`token_f1` for these.

    A part is contained if its words follow each other in the prediction: whole words, so that
    ``3`` is not in ``13``. Case, punctuation and apostrophes do not count. Numbers keep their sign
    and decimals and are compared by value: ``$14.80`` is ``14.8``, ``2,500`` is ``2500``, ``two``
    is ``2``; what else has a comma, colon or slash between digits is a word as it stands.
    Articles stay, since ``sample A`` is a reference. Each Chinese or Japanese character is a word
    of its own.

    Args:
        prediction: What the model wrote.
        reference: One annotation, with or without ``<AND>`` and ``<OR>``.

    Returns:
        In [0, 1]. Parts and alternatives without words do not count; if none is left, 1 where the
        prediction has no words either, else 0.

    >>> and_or("x = -1", "-1<AND>-5"), and_or("It is sunny.", "clear<OR>sunny")
    (0.5, 1.0)
    """
    given = _phrase(prediction)
    alternatives = [
        parts
        for alternative in reference.split("<OR>")
        if (parts := [phrase for part in alternative.split("<AND>") if (phrase := _phrase(part))])
    ]
    if not alternatives:
        return float(not given)
    return max(sum(part in given for part in parts) / len(parts) for parts in alternatives)


def _folded(text: str) -> str:
    """Drop differences of case and of Unicode form."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _UNSPACED.sub(r" \1 ", folded)


def _bag(text: str) -> Counter[str]:
    """Count the words of ``text``, as SQuAD sees them."""
    kept = "".join(
        sign
        for sign in _folded(text)
        if sign not in string.punctuation and not unicodedata.category(sign).startswith("P")
    )
    return Counter(word for word in kept.split() if word not in _ARTICLES)


def _f1(one: Counter[str], other: Counter[str]) -> float:
    """Give the harmonic mean of precision and recall; symmetric."""
    words = one.total() + other.total()
    return 2 * (one & other).total() / words if words else 1.0


def _phrase(text: str) -> str:
    """Give the words of ``text`` with a space before and after each, or nothing."""
    plain = _folded(text).replace("\u2212", "-").replace("'", "").replace("\u2019", "")
    apart = "".join(
        sign if sign in _IN_NUMBERS or unicodedata.category(sign)[0] in "LMN" else " "
        for sign in plain
    )
    words = [_by_value(word) for word in _WORD.findall(apart)]
    return f" {' '.join(words)} " if words else ""


def _by_value(word: str) -> str:
    """Write equal numbers equally; give back any other word."""
    if _GROUPED.fullmatch(word):
        word = word.replace(",", "")
    if decimal := _DECIMAL.fullmatch(word):
        sign, whole, part = decimal.groups()
        return f"{sign}{whole or 0}{'.' if part else ''}{part}"
    return NUMBER_WORDS.get(word, word)
