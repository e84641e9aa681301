"""ScienceQA (Lu et al. 2022): multiple choice, with and without images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from effllava_optuna.errors import shorten
from effllava_optuna.tasks.sample import UNLABELLED, GradingRule, Split
from effllava_optuna.tasks.schemas.row_schema import (
    LETTER_INSTRUCTION,
    LETTERS,
    ParsedRow,
    RowSchema,
    format_choices,
    letter_rule,
    read_choices,
    read_id,
    read_index,
    read_text,
)
from effllava_optuna.tasks.scoring.multiple_choice import HARNESSES

if TYPE_CHECKING:
    from collections.abc import Mapping

_SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}


class ScienceQA(RowSchema):
    """Rows of derek-thomas/ScienceQA and of lmms-lab/ScienceQA.

    The prompt is that of LLaVA: the hint as context, the question, one option per line, and the
    instruction to answer with a letter. Subsets are those of the official script
    (tools/evaluate_acc.py of lupantech/ScienceQA): by subject; TXT with a hint, IMG with an image
    (many rows have both), NO with neither; by grade.
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

    def parse(self, row: Mapping[str, Any], *, has_image: bool) -> ParsedRow:
        """Parse a row."""
        choices = read_choices(row)
        hint = read_text(row, "hint", empty=True)
        context = [f"Context: {hint}"] if hint else []
        question = format_choices(read_text(row, "question"), choices)
        subject = _SUBJECTS.get(read_text(row, "subject", empty=True), "")
        subsets = [
            subject,
            "TXT" if hint else "",
            "IMG" if has_image else "",
            "" if hint or has_image else "NO",
            _grade_subset(read_text(row, "grade", empty=True)),
        ]
        return ParsedRow(
            id=read_id(row, "id"),
            question=self.add_instruction("\n".join([*context, question]), LETTER_INSTRUCTION),
            targets=tuple(LETTERS[: len(choices)]),
            answer=UNLABELLED if self.is_unlabelled(row) else read_index(row["answer"], choices),
            subsets=tuple(subset for subset in subsets if subset),
            stratum=subject,
        )

    def grading_rule(self, *, closed: bool) -> GradingRule:
        """Return the rule that parses a letter."""
        return letter_rule("ScienceQA accuracy", self.harness, self.generation_length(16))


def _grade_subset(grade: str) -> str:
    number = grade.removeprefix("grade")
    if not number.isdecimal():
        return ""
    if len(number) > 2:
        raise ValueError(f"grade is {shorten(grade)}, which is not a school grade")
    return "G1-6" if int(number) <= 6 else "G7-12"
