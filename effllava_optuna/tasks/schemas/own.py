"""The user's own rows: a question, and choices or an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from effllava_optuna.tasks._task import Rule, Split
from effllava_optuna.tasks.choice import HARNESSES
from effllava_optuna.tasks.freeform import token_f1
from effllava_optuna.tasks.schemas._schema import (
    DIRECTLY,
    LETTERS,
    Entry,
    Schema,
    id_of,
    letter_rule,
    lettered,
    text_of,
    texts_of,
)
from effllava_optuna.tasks.vqa import normalised

if TYPE_CHECKING:
    from collections.abc import Mapping

    from effllava_optuna.tasks._task import Sample


class Own(Schema):
    """Rows with ``question``, perhaps ``image``, and ``answer``; with ``choices``, closed ones.

    ``answer`` is a text or a list of texts; of a closed question the index, the letter or the
    text of the right choice. ``id`` names a row, ``stratum`` its kind.
    """

    name = "qa"
    sources: ClassVar[Mapping[Split, str]] = {
        Split.PROXY: "train",
        Split.VALIDATION: "validation",
        Split.TEST: "test",
    }
    required = ("question", "answer")
    optional = ("image", "choices", "id", "stratum")
    harnesses = ("token-f1", "exact-match", *HARNESSES)

    def read(self, row: Mapping[str, Any], *, pictured: bool) -> Entry:
        """Say what a row says."""
        stratum = text_of(row, "stratum", empty=True)
        subsets = (stratum,) if stratum else ()
        question, name = text_of(row, "question"), id_of(row, "id")
        if row.get("choices"):
            choices = texts_of(row, "choices", 2)
            if len(choices) > len(LETTERS):
                raise ValueError(f"choices has {len(choices)} entries, {len(LETTERS)} at most")
            return Entry(
                name,
                self.asked(lettered(question, choices), DIRECTLY),
                tuple(LETTERS[: len(choices)]),
                _index(row["answer"], choices),
                subsets,
                stratum,
            )
        answers = row["answer"]
        right = texts_of(row, "answer", 1) if isinstance(answers, list) else None
        right = right or (text_of(row, "answer"),)
        return Entry(name, self.asked(question, ""), right, None, subsets, stratum)

    def rule(self, *, closed: bool) -> Rule:
        """Give the rule for questions with choices, or for those without."""
        if closed:
            harness = self.harness if self.harness in HARNESSES else HARNESSES[0]
            return letter_rule("accuracy", harness, self.tokens(16))
        if self.harness == "exact-match":
            return Rule("exact match (evalai normalisation)", _equal, self.tokens(32))
        return Rule("token F1", _similar, self.tokens(32))


def _index(answer: Any, choices: tuple[str, ...]) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str):
        said = answer.strip()
        named = [i for i, text in enumerate(choices) if said in (text, LETTERS[i])]
        if len(named) > 1:
            raise ValueError(f"answer {answer!r} may be {' or '.join(LETTERS[i] for i in named)}")
        if named:
            return named[0]
    raise ValueError(f"answer {answer!r} is outside its {len(choices)} choices")


def _similar(sample: Sample, text: str) -> float:
    return token_f1(text, sample.targets)


def _equal(sample: Sample, text: str) -> float:
    said = normalised(text, "evalai")
    return float(any(said == normalised(right, "evalai") for right in sample.targets))
