"""What a trial left behind: all that a report needs, nothing that needs a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from effllava_optuna.policy.front import hypervolume, pareto, spread

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial of a study.

    Attributes:
        number: Of the trial.
        state: ``complete``, ``running``, ``waiting``, ``pruned`` or ``fail``.
        epoch: Whose basis and space it has; None: it was never given one.
        kind: ``anchor``, ``random``, ``child``, ``reeval`` or ``foreign``.
        origin: The trial that a ``reeval`` measures again.
        keep: Units kept at each site; empty where the trial has no parameters.
        quality: Accuracy minus eta times risk; NaN where not measured, as all below.
        latency_ms: By the latency table.
        accuracy: Share of right answers on the proxy, cross-fitted.
        expected: Mean probability of the right answer there, cross-fitted.
        risk: Omega, in nats.
        kept_share: Share of the prunable parameters that stay.
        feasible: Whether it is within the budget of the study.
        basis: Digest of the basis that the values belong to.
        hits: Share of each proxy sample that was answered right, in [0, 1].
    """

    number: int
    state: str
    epoch: int | None
    kind: str
    origin: int | None
    keep: tuple[int, ...]
    quality: float
    latency_ms: float
    accuracy: float
    expected: float
    risk: float
    kept_share: float
    feasible: bool
    basis: str
    hits: tuple[float, ...]

    @property
    def measured(self) -> bool:
        """Tell whether the trial has values."""
        return self.state == "complete"

    @property
    def foreign(self) -> bool:
        """Tell whether the trial was enqueued from outside the search."""
        return self.kind == "foreign"

    @property
    def eligible(self) -> bool:
        """Tell whether the trial may be on a front: measured, feasible, found by the search."""
        return self.measured and self.feasible and not self.foreign


def front_of(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Give the Pareto front of quality and latency among eligible trials, best quality first."""
    able = [trial for trial in trials if trial.eligible]
    front = [able[index] for index in pareto([(t.quality, t.latency_ms) for t in able])]
    return sorted(front, key=lambda trial: (-trial.quality, trial.number))


def finalists(front: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """Take ``count`` of a front: the better half by quality, the rest spread along the front."""
    best = list(front[: (count + 1) // 2])
    rest = sorted(front[len(best) :], key=lambda trial: trial.latency_ms)
    points = np.array([(trial.quality, trial.latency_ms) for trial in rest]).reshape(-1, 2)
    return best + [rest[index] for index in spread(points, count - len(best))]


def hypervolume_by_epoch(
    trials: Sequence[TrialRecord], epochs: int, reference: tuple[float, float], accuracy: str
) -> list[float]:
    """Measure what each epoch dominates, on accuracy and latency, so that eta does not count.

    Args:
        trials: Of the whole study.
        epochs: How many epochs have been opened.
        reference: Accuracy and latency, worse than what shall count.
        accuracy: ``expected`` or ``hard``: the accuracy that the quality is made of.
    """
    volumes = []
    for epoch in range(epochs):
        mine = [trial for trial in trials if trial.epoch == epoch and trial.eligible]
        points = [
            (trial.expected if accuracy == "expected" else trial.accuracy, trial.latency_ms)
            for trial in mine
        ]
        volumes.append(hypervolume(points, reference))
    return volumes
