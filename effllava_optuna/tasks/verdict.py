"""What a judge said, question by question, and what it adds up to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from effllava_optuna.tasks.wording import Origin

Judge = Callable[[str], str]


class Reply(str):
    """A judge's reply that knows who gave it.

    Attributes:
        model: The model that the server says has answered; empty where it does not say.
    """

    __slots__ = ("model",)
    model: str

    def __new__(cls, text: str, model: str = "") -> Self:
        """Make a reply of ``text``."""
        made = super().__new__(cls, text)
        made.model = model
        return made


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said about one answer.

    Attributes:
        id: The question.
        score: Of the prediction; in [0, 1] for MM-Vet and [0, 10] for LLaVA-Bench; None where
            the reply could not be read.
        reference: Of the reference answer on the same scale; always 1 for MM-Vet; None where
            ``score`` is.
        reply: The last reply, as it came.
        groups: Capabilities, sorted, or the category.
        model: The model that the server says has answered; empty where it does not say.
    """

    id: str
    score: float | None
    reference: float | None
    reply: str
    groups: tuple[str, ...]
    model: str = ""

    @staticmethod
    def of(
        id_: str, pair: tuple[float, float] | None, reply: str, groups: tuple[str, ...]
    ) -> Verdict:
        """Make a verdict of ``reply``; ``pair`` is what was read there, the reference first."""
        reference, score = (None, None) if pair is None else pair
        model = reply.model if isinstance(reply, Reply) else ""
        return Verdict(id_, score, reference, str(reply), groups, model)


@dataclass(frozen=True, slots=True)
class Judged:
    """A benchmark's score by a judge.

    Attributes:
        name: The benchmark.
        judge: The model id of the judge, as it was asked for.
        wording: Whose prompt the judge was given.
        score: Sum of the predictions' scores over the sum of the references', times 100; None
            where no reply could be read or all references have 0. At most 100 for MM-Vet, where
            it is the mean; above 100 for LLaVA-Bench where the predictions are preferred.
        by_group: The same for each capability or category, sorted.
        by_combination: The same for each set of capabilities that questions have, joined with
            ``+``, sorted; empty for LLaVA-Bench.
        counted: How many replies could be read.
        failures: How many could not; they are in no score.
        verdicts: One a question, in order.
    """

    name: str
    judge: str
    wording: Origin
    score: float | None
    by_group: Mapping[str, float | None]
    by_combination: Mapping[str, float | None]
    counted: int
    failures: int
    verdicts: tuple[Verdict, ...]

    @staticmethod
    def of(
        verdicts: Sequence[Verdict],
        *,
        name: str,
        judge: str,
        wording: Origin,
        combinations: Mapping[str, str] | None = None,
    ) -> Judged:
        """Add up ``verdicts``; ``combinations`` says by which name one is counted once more."""
        counted = sum(verdict.score is not None for verdict in verdicts)
        sets = combinations or {}
        return Judged(
            name=name,
            judge=judge,
            wording=wording,
            score=_ratio(verdicts),
            by_group=_ratios([(group, one) for one in verdicts for group in one.groups]),
            by_combination=_ratios([(sets[one.id], one) for one in verdicts if one.id in sets]),
            counted=counted,
            failures=len(verdicts) - counted,
            verdicts=tuple(verdicts),
        )

    @property
    def answered_by(self) -> tuple[str, ...]:
        """Name the models that replies say they came from, sorted; an alias hides them."""
        return tuple(sorted({verdict.model for verdict in self.verdicts} - {""}))

    def __str__(self) -> str:
        score = "no score" if self.score is None else f"{self.score:.1f}"
        really = f" ({', '.join(self.answered_by)} replied)" if self.answered_by else ""
        return (
            f"{self.name}: {score}, judged by {self.judge}{really} under {self.wording} wording, "
            f"{self.counted} of {len(self.verdicts)} replies read"
        )


def _ratios(pairs: Sequence[tuple[str, Verdict]]) -> dict[str, float | None]:
    return {
        group: _ratio(verdict for member, verdict in pairs if member == group)
        for group in sorted({group for group, _ in pairs})
    }


def _ratio(verdicts: Iterable[Verdict]) -> float | None:
    read = [
        (verdict.score, verdict.reference)
        for verdict in verdicts
        if verdict.score is not None and verdict.reference is not None
    ]
    whole = math.fsum(reference for _, reference in read)
    return 100 * math.fsum(score for score, _ in read) / whole if whole else None
