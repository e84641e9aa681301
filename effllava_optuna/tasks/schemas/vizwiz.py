"""VizWiz-VQA (Gurari et al. 2018): images by blind people, with ten answers each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from effllava_optuna.tasks.sample import GradingRule, Split
from effllava_optuna.tasks.schemas.row_schema import (
    ParsedRow,
    RowSchema,
    is_empty,
    read_id,
    read_text,
    read_texts,
)
from effllava_optuna.tasks.scoring.short_answers import NORMALISATIONS, vizwiz_accuracy

if TYPE_CHECKING:
    from effllava_optuna.tasks.sample import Sample

_INSTRUCTION = (
    "When the provided information is insufficient, respond with 'Unanswerable'.\n"
    "Answer the question using a single word or phrase."
)


class VizWiz(RowSchema):
    """Rows of lmms-lab/VizWiz-VQA, which has no train split and no answers in its test split.

    The prompt is that of LLaVA. The most frequent of the ten answers is the target of likelihood
    and training; all ten grade a generated answer.
    """

    name = "vizwiz"
    hub = "lmms-lab/VizWiz-VQA"
    sources = dict.fromkeys(Split, "val")
    required = ("image", "question")
    label = "answers"
    optional = ("answers", "question_id", "category")
    harnesses = NORMALISATIONS

    def parse(self, row: Mapping[str, Any], *, has_image: bool) -> ParsedRow:
        """Parse a row; the answers are sorted by frequency."""
        answers = row.get("answers")
        if isinstance(answers, list) and all(isinstance(answer, Mapping) for answer in answers):
            # The files of vizwiz.org have a mapping of answer and confidence for each person.
            row = {**row, "answers": [answer.get("answer") for answer in answers]}
        # An answer is compared with those of the other people, so that one alone scores 0.
        texts = () if is_empty(answers) else read_texts(row, "answers", 2)
        counts = Counter(text.lower() for text in texts)
        category = read_text(row, "category", empty=True)
        return ParsedRow(
            id=read_id(row, "question_id"),
            question=self.add_instruction(read_text(row, "question"), _INSTRUCTION),
            targets=tuple(sorted(texts, key=lambda text: -counts[text.lower()])),
            subsets=(category,) if category else (),
            stratum=category,
        )

    def grading_rule(self, *, closed: bool) -> GradingRule:
        """Return the rule that compares a text with the ten answers."""

        def grade(sample: Sample, text: str) -> float:
            return vizwiz_accuracy(text, sample.targets, self.harness)

        return GradingRule(
            f"VizWiz accuracy ({self.harness} normalisation)",
            grade,
            self.generation_length(10),
            baseline_answer="unanswerable",
        )
