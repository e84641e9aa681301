"""An evaluator that counts its measurements, and sessions that use it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from effllava_optuna.objectives import encode_samples, graded_samples
from effllava_optuna.search.epochs.schedule import EpochSchedule
from effllava_optuna.search.evaluator import Evaluator
from effllava_optuna.search.sampler_factory import make_sampler

if TYPE_CHECKING:
    from effllava_optuna.objectives import EncodedBatch
    from effllava_optuna.policy import Policy
    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import WeightState
    from effllava_optuna.tasks import Scores, Split


@dataclass(frozen=True)
class CountingEvaluator(Evaluator):
    """An evaluator that counts its measurements and keeps their scores by sample.

    Attributes:
        scored: The measured policies with their proxy scores, in the order of the measurements.
    """

    scored: list[tuple[Policy, Scores]] = field(default_factory=list)
    _batches: dict[Split, tuple[EncodedBatch, ...]] = field(default_factory=dict)

    @property
    def evaluations(self) -> int:
        """Count the policies that were measured."""
        return len(self.scored)

    def proxy_scores(
        self, policy: Policy, weight_state: WeightState, timeout: float | None = None
    ) -> Scores:
        """Return the proxy scores of a policy, and keep them."""
        scores = super().proxy_scores(policy, weight_state, timeout)
        self.scored.append((policy, scores))
        return scores

    def large_batches(self, split: Split) -> tuple[EncodedBatch, ...]:
        """Return the samples of a split, encoded once in large batches."""
        if split not in self._batches:
            samples = graded_samples(
                self.loaded, self.inputs.task.samples(split), self.config.quality.measure
            )
            self._batches[split] = encode_samples(
                self.loaded, samples, batch_size=250, generate=True
            )
        return self._batches[split]


def with_counting(session: SearchSession) -> SearchSession:
    """Return the session with an evaluator that counts, and a schedule and a sampler for it."""
    parts = {part.name: getattr(session.evaluator, part.name) for part in fields(Evaluator)}
    evaluator = CountingEvaluator(**parts)
    schedule = EpochSchedule(
        session.study, evaluator, session.epochs, session.report_stage, endless=False
    )
    sampler = make_sampler(evaluator.inputs, evaluator.calibration, lambda _: schedule.view())
    session.study.sampler = sampler
    return replace(session, evaluator=evaluator, schedule=schedule, sampler=sampler)


def evaluator_of(session: SearchSession) -> CountingEvaluator:
    """Return the evaluator of a session that `StudyRunner.open` has opened."""
    if not isinstance(session.evaluator, CountingEvaluator):
        raise TypeError("This session was not opened by a StudyRunner.")
    return session.evaluator
