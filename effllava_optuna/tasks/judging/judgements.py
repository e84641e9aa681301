"""Judgements of a language model about answers, and the score that they add up to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from effllava_optuna.tasks.judging.judge_prompts import PromptOrigin

Judge = Callable[[str], str]
"""A function from a prompt to a reply."""


class JudgeReply(str):
    """The text of a reply, with the model that wrote it.

    Attributes:
        model: The model id in the response of the server; empty if it has none.
    """

    __slots__ = ("model",)
    model: str

    def __new__(cls, text: str, model: str = "") -> Self:
        """Create a reply with ``text``."""
        reply = super().__new__(cls, text)
        reply.model = model
        return reply


@dataclass(frozen=True, slots=True)
class Judgement:
    """The judgement about one answer.

    Attributes:
        id: Id of the question.
        score: Score of the prediction, in [0, 1] for MM-Vet and [0, 10] for LLaVA-Bench; None if
            the reply could not be parsed.
        reference: Score of the reference answer on the same scale; always 1 for MM-Vet; None if
            ``score`` is None.
        reply: The last reply of the judge.
        categories: Categories of the question, sorted.
        model: See `JudgeReply`.
    """

    id: str
    score: float | None
    reference: float | None
    reply: str
    categories: tuple[str, ...]
    model: str = ""

    @staticmethod
    def from_reply(
        id_: str, scores: tuple[float, float] | None, reply: str, categories: tuple[str, ...]
    ) -> Judgement:
        """Create a judgement from a reply and its parsed ``scores``: reference, prediction."""
        reference, score = (None, None) if scores is None else scores
        return Judgement(
            id=id_,
            score=score,
            reference=reference,
            reply=str(reply),
            categories=categories,
            model=reply.model if isinstance(reply, JudgeReply) else "",
        )


@dataclass(frozen=True, slots=True)
class JudgedScore:
    """The score of a benchmark by a judge.

    A score is the sum of the scores of the predictions divided by that of the references, times
    100. It is None if no reply could be parsed, or if all references have the score 0. For MM-Vet
    it is the mean, at most 100; for LLaVA-Bench it exceeds 100 if the predictions score better
    than the references.

    Attributes:
        benchmark: Name of the benchmark.
        judge: The model id that was requested as judge.
        prompt_origin: Where the prompt of the judge comes from.
        judgements: One for each question, in order.
        multi_label: Whether a question of the benchmark can have several categories.
    """

    benchmark: str
    judge: str
    prompt_origin: PromptOrigin
    judgements: tuple[Judgement, ...]
    multi_label: bool = False

    @property
    def score(self) -> float | None:
        """Return the score of all questions."""
        return _relative_score(self.judgements)

    @property
    def by_category(self) -> dict[str, float | None]:
        """Return the score of each category, sorted by name."""
        return _scores_by([(name, one) for one in self.judgements for name in one.categories])

    @property
    def by_combination(self) -> dict[str, float | None]:
        """Return the score of each set of categories, joined by ``+``; empty for single labels."""
        if not self.multi_label:
            return {}
        return _scores_by([("+".join(one.categories), one) for one in self.judgements])

    @property
    def n_parsed(self) -> int:
        """Return the number of replies that could be parsed."""
        return sum(judgement.score is not None for judgement in self.judgements)

    @property
    def n_unparsed(self) -> int:
        """Return the number of replies that could not be parsed; no score includes them."""
        return len(self.judgements) - self.n_parsed

    @property
    def reply_models(self) -> tuple[str, ...]:
        """Return the model ids in the responses, sorted; they resolve an alias in ``judge``."""
        return tuple(sorted({judgement.model for judgement in self.judgements} - {""}))

    def __str__(self) -> str:
        score = "no score" if self.score is None else f"{self.score:.1f}"
        models = f" ({', '.join(self.reply_models)} replied)" if self.reply_models else ""
        n_replies = len(self.judgements)
        return (
            f"{self.benchmark}: {score}, judged by {self.judge}{models} with the "
            f"{self.prompt_origin} prompt, {self.n_parsed} of {n_replies} replies parsed"
        )


def _scores_by(pairs: Sequence[tuple[str, Judgement]]) -> dict[str, float | None]:
    return {
        name: _relative_score(judgement for other, judgement in pairs if other == name)
        for name in sorted({name for name, _ in pairs})
    }


def _relative_score(judgements: Iterable[Judgement]) -> float | None:
    pairs = [
        (judgement.score, judgement.reference)
        for judgement in judgements
        if judgement.score is not None and judgement.reference is not None
    ]
    total = math.fsum(reference for _, reference in pairs)
    return 100 * math.fsum(score for score, _ in pairs) / total if total else None
