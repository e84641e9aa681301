"""The finalists: which policies of a front are measured on validation and test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from effllava_optuna.policy.component import Kind
from effllava_optuna.policy.front import spread
from effllava_optuna.policy.statistics import bootstrap_means

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from effllava_optuna.policy.record import TrialRecord
    from effllava_optuna.policy.structure import ModelStructure

_DEVIATIONS = 1.96  # half the width of a 95 % interval
_STORED_DIGITS = 6  # of the accuracies in stored results
_DIGITS = 9  # differences below are rounding errors, which must not decide


def meets_budget(budget: Mapping[str, float | None], latency_ms: float, speedup: float) -> bool:
    """Return whether a policy meets a budget of latency as it was timed as a whole.

    Values that meet it as the tables show them, rounded, do so.

    Args:
        budget: The largest ``latency_ms`` and the smallest ``speedup``; None: any is allowed.
        latency_ms: The latency of the policy.
        speedup: Its speed-up over the dense model, which was timed with it.
    """
    most_ms, least_speedup = budget.get("latency_ms"), budget.get("speedup")
    return (most_ms is None or min(latency_ms, round(latency_ms, 1)) <= most_ms) and (
        least_speedup is None or max(speedup, round(speedup, 2)) >= least_speedup
    )


def finalist_merit(
    accuracy: float, quality: float, *, within_budget: bool
) -> tuple[float, bool, float]:
    """Return the sort key by which a finalist is chosen; the largest one is the choice.

    Args:
        accuracy: Its accuracy on the samples that decide, which are those of validation. Values
            that differ by rounding errors are equal.
        quality: Its quality on the proxy, which counts last.
        within_budget: Whether it meets the budget as timed as a whole, see `meets_budget`; this
            counts among finalists of equal accuracy.
    """
    return round(accuracy, _STORED_DIGITS), within_budget, quality


def select_finalists(
    front: Sequence[TrialRecord],
    count: int,
    structure: ModelStructure,
    groups: Sequence[int],
    *,
    has_budget: bool,
) -> list[TrialRecord]:
    """Select the policies of a front among which validation chooses.

    A study with a budget asks for its most accurate policy. Validation adds most to this question
    if the finalists could be as accurate as the best one and differ from it: policies with almost
    equal widths have almost equal answers, and choosing among them chooses nothing. Therefore the
    candidates are the policies whose quality is within the noise of the proxy set of the best one
    (95 % of the resamples of its groups, paired), and the finalists are the best one and those
    that are farthest from all that are selected, by the logarithm of their width ratios. If there
    are not enough candidates, the others lie evenly along the rest of the front.

    A study without a budget has no preferred end of its front: the finalists lie evenly along all
    of it, the best and the fastest policy included.

    Every value is read from the records, and ties go to the better quality, then to the earlier
    trial: the same front gives the same finalists.

    Args:
        front: The Pareto front, the best quality first.
        count: Number of finalists.
        structure: The structure of the model.
        groups: The group of each proxy sample.
        has_budget: Whether the study limits latency or size.

    Returns:
        At most ``count`` trials, the best quality first.
    """
    if len(front) <= count:
        return list(front)
    if not has_budget:
        return _along(front, count)
    if any(len(trial.quality_scores) != len(groups) for trial in front):
        return best_and_spread(front, count)  # as older versions, which stored no scores
    selected = _farthest(_as_good_as_the_best(front, groups), count, structure)
    numbers = {trial.number for trial in selected}
    rest = [trial for trial in front if trial.number not in numbers]
    numbers |= {trial.number for trial in _along(rest, count - len(selected))}
    return [trial for trial in front if trial.number in numbers]


def best_and_spread(front: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """Select ``count`` of a front: half by quality, the rest evenly along the front."""
    best = list(front[: (count + 1) // 2])
    rest = sorted(front[len(best) :], key=lambda trial: trial.latency_ms)
    return best + [rest[index] for index in spread(_points(rest), count - len(best))]


def _along(trials: Sequence[TrialRecord], count: int) -> list[TrialRecord]:
    """Select ``count`` trials evenly along a part of the front, the best quality first."""
    return [trials[index] for index in spread(_points(trials), count)]


def _points(trials: Sequence[TrialRecord]) -> NDArray[np.float64]:
    return np.array([(trial.quality, trial.latency_ms) for trial in trials]).reshape(-1, 2)


def _as_good_as_the_best(front: Sequence[TrialRecord], groups: Sequence[int]) -> list[TrialRecord]:
    """Return the trials whose quality is within the noise of the proxy set of the best one."""
    scores = np.array([trial.quality_scores for trial in front])
    deviations = bootstrap_means(scores[0] - scores, groups).std(1)
    shortfalls = np.array([front[0].quality - trial.quality for trial in front])
    within = np.round(shortfalls - _DEVIATIONS * deviations, _DIGITS) <= 0
    return [trial for trial, is_within in zip(front, within, strict=True) if is_within]


def _farthest(
    trials: Sequence[TrialRecord], count: int, structure: ModelStructure
) -> list[TrialRecord]:
    """Select the first trial, then the farthest from all selected ones (Gonzalez 1985).

    A trial with the widths of a selected one is not selected.
    """
    features = np.array([log_width_ratios(structure, trial.widths) for trial in trials])
    selected = [0]
    distances = np.linalg.norm(features - features[0], axis=1)
    while len(selected) < count:
        farthest = int(np.round(distances, _DIGITS).argmax())
        if distances[farthest] == 0:
            break
        selected.append(farthest)
        others = np.linalg.norm(features - features[farthest], axis=1)
        distances = np.minimum(distances, others)
    return [trials[index] for index in selected]


def log_width_ratios(structure: ModelStructure, widths: Sequence[int]) -> NDArray[np.float64]:
    """Return the logarithm of the width ratio of each component.

    A removed block counts as half a block, and its components, which have no effect, as dense:
    all policies of one network have the same features.

    Example:
        >>> from effllava_optuna.policy import Component, ModelStructure
        >>> structure = ModelStructure(
        ...     (
        ...         Component("language", 0, Kind.BLOCK, 1, 10, floor=0),
        ...         Component("language", 0, Kind.MLP, 32, 10),
        ...     )
        ... )
        >>> log_width_ratios(structure, (1, 16)).round(3).tolist() == [0.0, -0.693]
        True
        >>> log_width_ratios(structure, (0, 16)).round(3).tolist() == [-0.693, 0.0]
        True
    """
    removed = {
        (component.tower, component.layer)
        for component, width in zip(structure.components, widths, strict=True)
        if component.kind is Kind.BLOCK and not width
    }
    ratios = []
    for component, width in zip(structure.components, widths, strict=True):
        if component.kind is Kind.BLOCK:
            ratios.append(1.0 if width else 0.5)
        elif (component.tower, component.layer) in removed:
            ratios.append(1.0)
        else:
            ratios.append(width / component.width)
    return np.log(ratios)
