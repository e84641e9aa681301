"""ScienceQA (Lu et al. 2022): multiple choice, with and without pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from effllava_optuna.tasks._task import Rule, Split
from effllava_optuna.tasks.choice import HARNESSES
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

if TYPE_CHECKING:
    from collections.abc import Mapping

_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}


class ScienceQA(Schema):
    """Rows of derek-thomas/ScienceQA and of lmms-lab/ScienceQA.

    The prompt is LLaVA's: the hint as context, the question, an option a line, and the order to
    answer with a letter. Subsets are those of the benchmark's own script (tools/evaluate_acc.py
    of lupantech/ScienceQA): by subject; TXT with a hint, IMG with a picture (many have both), NO
    with neither; by grade.
    """

    name = "scienceqa"
    hub = "derek-thomas/ScienceQA"
    sources: ClassVar[Mapping[Split, str]] = {
        Split.PROXY: "train",
        Split.VALIDATION: "validation",
        Split.TEST: "test",
    }
    required = ("question", "choices", "answer")
    optional = ("image", "hint", "subject", "grade", "id")
    harnesses = HARNESSES

    def read(self, row: Mapping[str, Any], *, pictured: bool) -> Entry:
        """Say what a row says."""
        choices = texts_of(row, "choices", 2)
        answer = row["answer"]
        if not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise ValueError(f"answer {answer!r} is outside its {len(choices)} choices")
        hint = text_of(row, "hint", empty=True)
        context = [f"Context: {hint}"] if hint else []
        question = lettered(text_of(row, "question"), choices)
        subject = _SUBJECTS.get(text_of(row, "subject", empty=True), "")
        kinds = [
            subject,
            "TXT" if hint else "",
            "IMG" if pictured else "",
            "" if hint or pictured else "NO",
            _grades(text_of(row, "grade", empty=True)),
        ]
        return Entry(
            id_of(row, "id"),
            self.asked("\n".join([*context, question]), DIRECTLY),
            tuple(LETTERS[: len(choices)]),
            answer,
            tuple(kind for kind in kinds if kind),
            f"{subject} {'picture' if pictured else 'text'}",
        )

    def rule(self, *, closed: bool) -> Rule:
        """Give the rule that reads a letter."""
        return letter_rule("ScienceQA accuracy", self.harness, self.tokens(16))


def _grades(grade: str) -> str:
    number = grade.removeprefix("grade")
    if not number.isdecimal():
        return ""
    return "G1-6" if int(number) <= 6 else "G7-12"
