"""Benchmarks whose answers are sentences: MM-Vet and LLaVA-Bench (in the wild).

Their scores need a judge, see `effllava_optuna.tasks.judging`. The grading rules of this module
are cheap proxies for a search, and their names say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllava_optuna.tasks.sample import GradingRule, Split
from effllava_optuna.tasks.schemas.row_schema import (
    ParsedRow,
    RowSchema,
    read_id,
    read_text,
    read_texts,
)
from effllava_optuna.tasks.scoring.free_text import and_or_score, token_f1

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.tasks.sample import Sample


class MMVet(RowSchema):
    """Rows of MM-Vet (Yu et al. 2023): whyu/mm-vet and lmms-lab/MMVet.

    The reference of a row has <AND> and <OR> between the parts that an answer must contain. The
    targets are the reference as plain text, for likelihood and training, and the original
    reference, for grading.
    """

    name = "mmvet"
    hub = "lmms-lab/MMVet"
    sources = dict.fromkeys(Split, "test")
    required = ("image", "question", "answer")
    optional = ("question_id", "capability")
    harnesses = ("and-or", "token-f1")

    def parse(self, row: Mapping[str, Any], *, has_image: bool) -> ParsedRow:
        """Parse a row."""
        reference = "" if self.is_unlabelled(row) else read_text(row, "answer")
        plain = reference.split("<OR>")[0].replace("<AND>", ", ")
        if isinstance(row.get("capability"), list):
            names: Sequence[str] = read_texts(row, "capability", 0)
        else:
            names = read_text(row, "capability", empty=True).split(",")
        capabilities = tuple(name.strip() for name in names if name.strip())
        return ParsedRow(
            id=read_id(row, "question_id"),
            question=self.add_instruction(read_text(row, "question"), ""),
            targets=(" ".join(plain.split()), reference) if reference else (),
            subsets=capabilities,
            stratum=",".join(capabilities),
        )

    def grading_rule(self, *, closed: bool) -> GradingRule:
        """Return a proxy of the score by a judge."""
        new_tokens = self.generation_length(64)
        if self.harness == "and-or":
            return GradingRule("AND/OR rule, a proxy for MM-Vet", _and_or_score, new_tokens)
        return GradingRule("token F1, a proxy for MM-Vet", _token_f1, new_tokens)


class LlavaBench(RowSchema):
    """Rows of LLaVA-Bench (in the wild) (Liu et al. 2023): lmms-lab/llava-bench-in-the-wild."""

    name = "llava-bench"
    hub = "lmms-lab/llava-bench-in-the-wild"
    sources = dict.fromkeys(Split, "train")
    required = ("image", "question", "gpt_answer")
    label = "gpt_answer"
    optional = ("question_id", "category", "caption")
    harnesses = ("token-f1",)

    def parse(self, row: Mapping[str, Any], *, has_image: bool) -> ParsedRow:
        """Parse a row."""
        category = read_text(row, "category", empty=True)
        return ParsedRow(
            id=read_id(row, "question_id"),
            question=self.add_instruction(read_text(row, "question"), ""),
            targets=() if self.is_unlabelled(row) else (read_text(row, "gpt_answer"),),
            subsets=(category,) if category else (),
            stratum=category,
            context=read_text(row, "caption", empty=True),
        )

    def grading_rule(self, *, closed: bool) -> GradingRule:
        """Return a proxy of the score by a judge."""
        name = "token F1, a proxy for LLaVA-Bench"
        return GradingRule(name, _token_f1, self.generation_length(128))


def _token_f1(sample: Sample, text: str) -> float:
    return token_f1(text, sample.targets[:1])


def _and_or_score(sample: Sample, text: str) -> float:
    return and_or_score(text, sample.targets[-1])
