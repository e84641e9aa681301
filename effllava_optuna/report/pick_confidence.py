"""The confidence of a picked policy: how often it would be picked on resampled samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from effllava_optuna.policy import bootstrap_interval, bootstrap_means
from effllava_optuna.report.paired_differences import paired_difference
from effllava_optuna.report.text_table import format_interval, measure_of_split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CONFIDENT = 0.95
_DIGITS = 9  # differences below are rounding errors


def pick_confidence(
    scores: Mapping[str, Any], trials: Sequence[int], accuracy_drop: float | None
) -> dict[str, Any]:
    """Compute how far other samples of the same kind could change a pick.

    Args:
        scores: ``groups`` of the samples, and ``hits`` by policy, on the split that decided.
        trials: The trials within the limits, the picked one first.
        accuracy_drop: The limit on the loss of accuracy, if there is one.

    Returns:
        The number of ``samples`` and the 95 % ``interval`` of the accuracy of the pick. If
        accuracy decided among several trials: ``best_fraction``, the fraction of the resamples in
        which no other is more accurate, ``only_best_fraction``, in which all others are less
        accurate, and the ``runner_up`` with its paired difference. If there is a limit on the
        drop and the dense model was scored: the ``accuracy_drop``, its ``interval``, and
        ``within_fraction``, the fraction of the resamples within the limit.
    """
    groups, hits = scores["groups"], scores["hits"]
    names = [str(trial) for trial in trials]
    low, high = bootstrap_interval(hits[names[0]], groups)
    confidence: dict[str, Any] = {
        "samples": len(groups),
        "interval": [round(low, 6), round(high, 6)],
        "best_fraction": None,
        "only_best_fraction": None,
        "runner_up": None,
        "accuracy_drop": None,
    }
    if accuracy_drop is None and len(names) > 1:
        means = bootstrap_means([hits[name] for name in names], groups)
        # Policies with equal answers tie: each of them is among the best, and none the only one.
        lead = np.round(means[0] - means[1:].max(0), _DIGITS)
        confidence["best_fraction"] = round(float((lead >= 0).mean()), 4)
        confidence["only_best_fraction"] = round(float((lead > 0).mean()), 4)
        confidence["runner_up"] = {
            "trial": trials[1],
            **paired_difference(scores, names[0], names[1]),
        }
    if accuracy_drop is not None and "dense" in hits:
        drops = np.subtract(hits["dense"], hits[names[0]])
        low, high = bootstrap_interval(drops, groups, bounds=(-1.0, 1.0))
        within_limit = bootstrap_means(drops[None], groups) <= accuracy_drop
        confidence["accuracy_drop"] = {
            "value": round(float(drops.mean()), 6),
            "interval": [round(low, 6), round(high, 6)],
            "within_fraction": round(float(within_limit.mean()), 4),
        }
    return confidence


def confidence_notes(pick: Mapping[str, Any]) -> list[str]:
    """Describe the confidence of a pick, a sentence per line.

    Args:
        pick: The result of `effllava_optuna.report.pick_policy`.
    """
    confidence, split = pick["confidence"], pick["split"]
    measure = measure_of_split(pick, split).capitalize()
    notes = [
        f"{measure} of trial {pick['picked']['trial']} on {split}: "
        f"{pick['picked'][f'accuracy_{split}']:.3f} {format_interval(confidence['interval'])}, "
        f"{confidence['samples']} samples."
    ]
    drop, runner_up = confidence["accuracy_drop"], confidence["runner_up"]
    if drop is not None:
        within = drop["within_fraction"]
        note = (
            f"{measure} drop: {drop['value']:.3f} {format_interval(drop['interval'], '+.3f')}; on "
            f"resampled samples it is at most {pick['rule']['accuracy_drop']:g} in {within:.0%} "
            "of cases"
        )
        unsure = ": not certain. Use a larger limit or a larger validation set."
        notes.append(note + ("." if within >= _CONFIDENT else unsure))
    if runner_up is not None:
        best, only = confidence["best_fraction"], confidence["only_best_fraction"]
        place = "second" if runner_up["difference"] else "as accurate"
        note = (
            f"Trial {runner_up['trial']} is {place}: the difference is "
            f"{runner_up['difference']:.3f} {format_interval(runner_up['interval'], '+.3f')}; on "
            f"resampled samples the pick is among the best of these {len(pick['admissible'])} in "
            f"{best:.0%} of cases, and the only best in {only:.0%}"
        )
        unsure = ": others are about as accurate."
        notes.append(note + ("." if only >= _CONFIDENT else unsure))
    if len(pick["admissible"]) == 1 and pick["rule"]:
        notes.append("No other policy is within the limits.")
    return notes
