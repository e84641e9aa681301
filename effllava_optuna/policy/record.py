"""Records of trials: all that a report needs, without a model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from effllava_optuna.policy.front import hypervolume, pareto

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROUNDING = 1e-6  # relative: latencies of policies that just meet a limit


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial of a study.

    Attributes:
        number: Of the trial.
        state: ``complete``, ``running``, ``waiting``, ``pruned`` or ``fail``.
        epoch: Epoch of its weight state and space; None: it has none.
        kind: ``anchor``, ``random``, ``child``, ``reeval`` or ``user`` (enqueued by a user).
        origin: Number of the trial that a ``reeval`` measures again.
        widths: Units kept by each component; empty if the trial has no parameters.
        quality: Accuracy minus eta times risk; NaN if not measured, like all below.
        latency_ms: Latency from the latency table, with the correction of the epoch, in ms.
        accuracy: Share of right answers on the proxy, cross-fitted.
        expected: Mean probability of the right answer on the proxy, cross-fitted.
        risk: Structural-risk term Omega, in nats.
        keep_ratio: Share of the prunable parameters that is kept.
        feasible: Whether it is within the budget of the study.
        weight_state: Digest of the weight state that the values belong to.
        hits: Score of each proxy sample, in [0, 1].
        quality_scores: The score of each proxy sample whose mean is the accuracy in the quality;
            empty if they are not stored, as by older versions.
    """

    number: int
    state: str
    epoch: int | None
    kind: str
    origin: int | None
    widths: tuple[int, ...]
    quality: float
    latency_ms: float
    accuracy: float
    expected: float
    risk: float
    keep_ratio: float
    feasible: bool
    weight_state: str
    hits: tuple[float, ...]
    quality_scores: tuple[float, ...] = ()

    @property
    def measured(self) -> bool:
        """Return whether the trial has values."""
        return self.state == "complete"

    @property
    def enqueued_by_user(self) -> bool:
        """Return whether a user enqueued the trial."""
        return self.kind == "user"

    @property
    def eligible(self) -> bool:
        """Return whether the trial may be on a front: measured, feasible, from the search.

        A trial with an infinite value, which an objective of the user may return, may not.
        """
        finite = math.isfinite(self.quality) and math.isfinite(self.latency_ms)
        return self.measured and finite and self.feasible and not self.enqueued_by_user


def front_of(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the Pareto front of eligible trials, the best quality first."""
    eligible = [trial for trial in trials if trial.eligible]
    points = [(trial.quality, trial.latency_ms) for trial in eligible]
    front = [eligible[index] for index in pareto(points)]
    return sorted(front, key=lambda trial: (-trial.quality, trial.number))


def with_latest_correction(
    trials: Sequence[TrialRecord], factors: Sequence[float], dense_ms: float
) -> list[TrialRecord]:
    """Convert the latencies of all epochs to the correction of the latest one.

    Within an epoch, all latencies are predicted with one factor, so their order stays.

    Args:
        trials: The trials.
        factors: By epoch, the factor of the predicted savings.
        dense_ms: Latency of the dense model from the latency table, in ms.
    """
    ratios = [factors[-1] / factor for factor in factors]
    return [
        replace(trial, latency_ms=dense_ms + ratios[trial.epoch] * (trial.latency_ms - dense_ms))
        if trial.epoch is not None and ratios[trial.epoch] != 1
        else trial
        for trial in trials
    ]


def within_limit(
    trials: Sequence[TrialRecord],
    dense_ms: float,
    latency_ms: float | None,
    speedup: float | None,
) -> list[TrialRecord]:
    """Take trials off the front that the latest correction moves out of the budget.

    If it moves all of them out, they stay: the search has found nothing that is faster.

    Args:
        trials: The trials, with the latest correction.
        dense_ms: Latency of the dense model from the latency table, in ms.
        latency_ms: The budget of the study as a latency in ms, or None.
        speedup: The budget of the study as a speed-up, or None.
    """
    if speedup is not None:
        latency_ms = dense_ms / speedup
    if latency_ms is None:
        return [*trials]
    limit_ms = latency_ms * (1 + _ROUNDING)
    if not any(trial.eligible and trial.latency_ms <= limit_ms for trial in trials):
        return [*trials]
    return [
        replace(trial, feasible=trial.feasible and not trial.latency_ms > limit_ms)
        for trial in trials
    ]


def hypervolume_by_epoch(
    trials: Sequence[TrialRecord], epochs: int, reference: tuple[float, float], accuracy: str
) -> list[float]:
    """Compute the hypervolume of each epoch, in accuracy and latency, independent of eta.

    Args:
        trials: All trials of the study.
        epochs: Number of epochs that have opened.
        reference: Reference point: accuracy and latency in ms.
        accuracy: ``expected`` or ``hard``: the accuracy that the quality is made of.
    """
    volumes = []
    for epoch in range(epochs):
        points = [
            (trial.expected if accuracy == "expected" else trial.accuracy, trial.latency_ms)
            for trial in trials
            if trial.epoch == epoch and trial.eligible
        ]
        volumes.append(hypervolume(points, reference))
    return volumes
