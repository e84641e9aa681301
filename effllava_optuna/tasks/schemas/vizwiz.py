"""VizWiz-VQA (Gurari et al. 2018): pictures by blind people, ten answers each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from effllava_optuna.tasks._task import Rule, Split
from effllava_optuna.tasks.schemas._schema import Entry, Schema, id_of, text_of, texts_of
from effllava_optuna.tasks.vqa import NORMALISATIONS, vizwiz_accuracy

if TYPE_CHECKING:
    from effllava_optuna.tasks._task import Sample

_INSTRUCTION = (
    "When the provided information is insufficient, respond with 'Unanswerable'.\n"
    "Answer the question using a single word or phrase."
)


class VizWiz(Schema):
    """Rows of lmms-lab/VizWiz-VQA; its test split has no answers, its train split is not there.

    The prompt is LLaVA's. Of the ten answers the most frequent one is read where an answer is
    read; all of them grade what is written.
    """

    name = "vizwiz"
    hub = "lmms-lab/VizWiz-VQA"
    sources = dict.fromkeys(Split, "val")
    required = ("image", "question")
    optional = ("answers", "question_id", "category")
    harnesses = NORMALISATIONS

    def read(self, row: Mapping[str, Any], *, pictured: bool) -> Entry:
        """Say what a row says."""
        answers = row.get("answers")
        if answers and all(isinstance(answer, Mapping) for answer in answers):
            # As in the files of vizwiz.org: each with a confidence beside it.
            row = {**row, "answers": [answer.get("answer") for answer in answers]}
        known = texts_of(row, "answers", 1) if answers else ()
        category = text_of(row, "category", empty=True)
        counts = Counter(answer.lower() for answer in known)
        best = sorted(known, key=lambda answer: -counts[answer.lower()])
        return Entry(
            id_of(row, "question_id"),
            self.asked(text_of(row, "question"), _INSTRUCTION),
            tuple(best),
            None,
            (category,) if category else (),
            category,
        )

    def rule(self, *, closed: bool) -> Rule:
        """Give the rule that compares with the ten answers."""

        def grade(sample: Sample, text: str) -> float:
            return vizwiz_accuracy(text, sample.targets, self.harness)

        name = f"VizWiz accuracy ({self.harness} normalisation)"
        return Rule(name, grade, self.tokens(10), constant="unanswerable")
