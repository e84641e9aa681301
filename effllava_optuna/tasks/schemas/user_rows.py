"""The schema of the user's own rows: a question, and choices or an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from effllava_optuna.errors import shorten
from effllava_optuna.tasks.sample import UNLABELLED, GradingRule, Split
from effllava_optuna.tasks.schemas.row_schema import (
    LETTER_INSTRUCTION,
    LETTERS,
    ParsedRow,
    RowSchema,
    UntypedFloat,
    UntypedInt,
    format_choices,
    is_empty,
    letter_rule,
    read_choices,
    read_id,
    read_index,
    read_text,
    read_texts,
)
from effllava_optuna.tasks.scoring.free_text import token_f1
from effllava_optuna.tasks.scoring.multiple_choice import HARNESSES
from effllava_optuna.tasks.scoring.short_answers import normalise_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from effllava_optuna.tasks.sample import Sample


class UserRows(RowSchema):
    """Rows with ``question`` and ``answer``; closed questions also have ``choices``.

    ``image`` is optional. ``answer`` is a text or a list of texts; for a closed question, the
    index, the letter or the text of the correct choice; it may be missing if the options say so.
    ``id`` names a row, ``stratum`` its kind.
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

    def parse(self, row: Mapping[str, Any], *, has_image: bool) -> ParsedRow:
        """Parse a row."""
        stratum = read_text(row, "stratum", empty=True)
        subsets = (stratum,) if stratum else ()
        question, row_id = read_text(row, "question"), read_id(row, "id")
        if not is_empty(row.get("choices")):
            choices = read_choices(row)
            return ParsedRow(
                id=row_id,
                question=self.add_instruction(
                    format_choices(question, choices), LETTER_INSTRUCTION
                ),
                targets=tuple(LETTERS[: len(choices)]),
                answer=UNLABELLED
                if self.is_unlabelled(row)
                else _choice_index(row["answer"], choices),
                subsets=subsets,
                stratum=stratum,
            )
        return ParsedRow(
            id=row_id,
            question=self.add_instruction(question, ""),
            targets=() if self.is_unlabelled(row) else _answers(row),
            subsets=subsets,
            stratum=stratum,
        )

    def grading_rule(self, *, closed: bool) -> GradingRule:
        """Return the rule for questions with or without choices."""
        if closed:
            harness = self.harness if self.harness in HARNESSES else HARNESSES[0]
            return letter_rule("accuracy", harness, self.generation_length(16))
        new_tokens = self.generation_length(32)
        if self.harness == "exact-match":
            return GradingRule("exact match (evalai normalisation)", _exact_match, new_tokens)
        return GradingRule("token F1", _token_f1, new_tokens)


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    if isinstance(row["answer"], list):
        return read_texts(row, "answer", 1)
    return (read_text(row, "answer"),)


def _choice_index(answer: Any, choices: tuple[str, ...]) -> int:
    if isinstance(answer, (UntypedInt, UntypedFloat)) and answer.text in choices:
        index = choices.index(answer.text)
        if answer in range(len(choices)) and answer != index:
            raise ValueError(f"answer {answer.text} may be the index or the text of a choice")
        return index
    if isinstance(answer, str):
        name = answer.strip()
        indices = [i for i, text in enumerate(choices) if name in (text, LETTERS[i])]
        if len(indices) > 1:
            letters = " or ".join(LETTERS[index] for index in indices)
            raise ValueError(f"answer {shorten(answer)} may be {letters}")
        if indices:
            return indices[0]
    return read_index(answer, choices, f", A to {LETTERS[len(choices) - 1]}, or their texts")


def _token_f1(sample: Sample, text: str) -> float:
    return token_f1(text, sample.targets)


def _exact_match(sample: Sample, text: str) -> float:
    normalised = normalise_answer(text, "evalai")
    return float(any(normalised == normalise_answer(right, "evalai") for right in sample.targets))
