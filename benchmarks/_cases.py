"""The studies that are compared: what each one changes in the quickstart study."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from _records import RecordId

from effllava_optuna.tasks import UNLABELLED, Digits, Split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.tasks import Sample


@dataclass(frozen=True, slots=True)
class Case:
    """A study that differs from the quickstart study.

    Attributes:
        label: Name of the study, also in the key of its record.
        changes: Settings of the study file, as ``table.key=value``.
        question: File of the record; ``studies`` if several questions compare with it.
        cross_fitted: Whether a sample is scored by a fit that has not seen it.
        only: The kind of question that calibration, search and choice use; empty: all kinds.
        labelled: Whether proxy and validation samples have labels; the test samples always do.
        extra_figures: Returns more fields of the record after the search; None: none.
    """

    label: str
    changes: tuple[str, ...] = ()
    question: str = "studies"
    cross_fitted: bool = True
    only: str = ""
    labelled: bool = True
    extra_figures: Callable[[SearchSession], Mapping[str, Any]] | None = None


DEFAULT = Case("default")
# The projector stays as it was loaded, so that all policies of the search share one weight state.
FIXED = Case("nsga2", ("projector.steps=0",))
# What the defaults were when the questions about risk and transfer were measured.
EARLIER = (
    "pruning.importance='taylor'", "search.curves='none'", "search.screening=false",
)  # fmt: skip
EARLIER_FIXED = Case("earlier", (*FIXED.changes, *EARLIER))


def study_id(model: str, seed: int, case: Case = DEFAULT) -> RecordId:
    """Return the id of the record of a study."""
    return RecordId(case.question, ("study", model, seed, case.label))


# Kinds of question of the digits task, and how their questions begin.
KINDS = {
    "one digit": "what digit is at",
    "sum": "what is the sum",
    "extreme": "what is the",
    "count": "how many digits",
}


def kind_of(sample: Sample) -> str:
    """Return the kind of question of a sample."""
    return next(kind for kind, start in KINDS.items() if sample.question.startswith(start))


@dataclass(frozen=True)
class KindDigits(Digits):
    """The digits task with its samples labelled by kind of question.

    Args:
        only: The kind of the proxy and validation samples; empty: all kinds.
        labelled: Whether the proxy and validation samples have labels.
    """

    only: str = ""
    labelled: bool = True

    def samples(self, split: Split) -> tuple[Sample, ...]:
        """Return the samples of ``split``."""
        samples = self._of_kind(split)
        if self.labelled or split == Split.TEST:
            return samples
        return tuple(replace(sample, answer=UNLABELLED) for sample in samples)

    def _of_kind(self, split: Split) -> tuple[Sample, ...]:
        if not self.only or split == Split.TEST:
            return tuple(
                replace(sample, subsets=(kind_of(sample),)) for sample in super().samples(split)
            )
        larger = Digits(self.seed, 16 * self.proxy, 16 * self.validation, self.test)
        size = {Split.PROXY: self.proxy, Split.VALIDATION: self.validation}[split]
        of_kind = [sample for sample in larger.samples(split) if kind_of(sample) == self.only]
        return tuple(replace(sample, subsets=(self.only,)) for sample in of_kind[:size])
