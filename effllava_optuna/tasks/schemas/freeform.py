"""Benchmarks whose answers are sentences: MM-Vet and LLaVA-Bench (in the wild).

Their scores need a judge (`effllava_optuna.tasks.judge`). The rules here are proxies, which a
search can afford, and are never called by the benchmark's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllava_optuna.tasks._task import Rule, Split
from effllava_optuna.tasks.freeform import and_or, token_f1
from effllava_optuna.tasks.schemas._schema import Entry, Schema, id_of, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from effllava_optuna.tasks._task import Sample

_AND, _OR = "<AND>", "<OR>"


class MMVet(Schema):
    """Rows of MM-Vet (Yu et al. 2023): whyu/mm-vet and lmms-lab/MMVet.

    A reference says with <AND> and <OR> what an answer must contain.
    """

    name = "mmvet"
    hub = "lmms-lab/MMVet"
    sources = dict.fromkeys(Split, "test")
    required = ("image", "question", "answer")
    optional = ("question_id", "capability")
    harnesses = ("and-or", "token-f1")

    def read(self, row: Mapping[str, Any], *, pictured: bool) -> Entry:
        """Say what a row says; the reference as it reads, and as it is written."""
        reference = text_of(row, "answer")
        first = reference.split(_OR)[0].replace(_AND, ", ")
        capability = row.get("capability") or ""
        named = capability if isinstance(capability, (list, tuple)) else capability.split(",")
        skills = tuple(str(skill).strip() for skill in named if str(skill).strip())
        return Entry(
            id_of(row, "question_id"),
            self.asked(text_of(row, "question"), ""),
            (" ".join(first.split()), reference),
            None,
            skills,
            ",".join(skills),
        )

    def rule(self, *, closed: bool) -> Rule:
        """Give a proxy."""
        if self.harness == "and-or":
            return Rule("AND/OR rule, a proxy for MM-Vet", _contains, self.tokens(64))
        return Rule("token F1, a proxy for MM-Vet", _similar, self.tokens(64))


class LlavaBench(Schema):
    """Rows of LLaVA-Bench (in the wild) (Liu et al. 2023): lmms-lab/llava-bench-in-the-wild."""

    name = "llava-bench"
    hub = "lmms-lab/llava-bench-in-the-wild"
    sources = dict.fromkeys(Split, "train")
    required = ("image", "question", "gpt_answer")
    optional = ("question_id", "category", "caption")
    harnesses = ("token-f1",)

    def read(self, row: Mapping[str, Any], *, pictured: bool) -> Entry:
        """Say what a row says."""
        category = text_of(row, "category", empty=True)
        return Entry(
            id_of(row, "question_id"),
            self.asked(text_of(row, "question"), ""),
            (text_of(row, "gpt_answer"),),
            None,
            (category,) if category else (),
            category,
            text_of(row, "caption", empty=True),
        )

    def rule(self, *, closed: bool) -> Rule:
        """Give a proxy."""
        return Rule("token F1, a proxy for LLaVA-Bench", _similar, self.tokens(128))


def _similar(sample: Sample, text: str) -> float:
    return token_f1(text, sample.targets[:1])


def _contains(sample: Sample, text: str) -> float:
    return and_or(text, sample.targets[-1])
