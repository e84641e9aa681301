"""Paired differences in accuracy between two policies that were scored on the same samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from effllava_optuna.policy import bootstrap_interval, bootstrap_means
from effllava_optuna.report.text_table import format_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BASELINES = {"dense": "the dense model", "uniform_by_kind": "the best uniform-by-kind policy"}


def compare_with_baselines(
    chosen: Mapping[str, Any], scores: Mapping[str, Any], measures: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Compare the chosen policy with the dense model and the best uniform-by-kind policy.

    Args:
        chosen: The result row of the chosen policy.
        scores: The scores that were stored at the end of the study, by split: ``groups`` of the
            samples, and ``hits`` by policy.
        measures: Whether the scores are an accuracy or an agreement, by split.

    Returns:
        One comparison per baseline on validation and on test, see `paired_difference`; none of an
        agreement with the dense model, which has the agreement 1.
    """
    trial = str(chosen["trial"])
    measure_of = {split: measures.get(split, "accuracy") for split in ("validation", "test")}
    return [
        {
            "baseline": baseline,
            "split": split,
            "measure": measure,
            **paired_difference(scores[split], trial, baseline),
        }
        for split, measure in measure_of.items()
        for baseline in BASELINES
        if baseline in scores[split]["hits"]
        and not (measure == "agreement" and baseline == "dense")
    ]


def paired_difference(scores: Mapping[str, Any], policy: str, baseline: str) -> dict[str, Any]:
    """Compute the accuracy of ``policy`` minus that of ``baseline`` on the same samples.

    Args:
        scores: ``groups`` of the samples, and ``hits`` by policy.
        policy: Key of a policy in ``hits``.
        baseline: Key of the other policy.

    Returns:
        The ``difference``, its paired 95 % ``interval``, and ``positive_fraction``, the fraction
        of the bootstrap resamples in which the difference is above zero.
    """
    groups: Sequence[int] = scores["groups"]
    differences = np.subtract(scores["hits"][policy], scores["hits"][baseline])
    low, high = bootstrap_interval(differences, groups, bounds=(-1.0, 1.0))
    positive_fraction = float((bootstrap_means(differences[None], groups) > 0).mean())
    return {
        "difference": round(float(differences.mean()), 6),
        "interval": [round(low, 6), round(high, 6)],
        "positive_fraction": round(positive_fraction, 4),
    }


def comparison_sentence(comparison: Mapping[str, Any]) -> str:
    """Return one entry of `compare_with_baselines` as a sentence."""
    low, high = comparison["interval"]
    better, worse = "is more accurate than", "is less accurate than"
    if comparison["measure"] == "agreement":
        better, worse = (f"agrees with the dense model {word} than" for word in ("more", "less"))
    if low > 0:
        verdict = better
    elif high < 0:
        verdict = worse
    else:
        verdict = "does not differ significantly from"
    return (
        f"On {comparison['split']}, the chosen policy {verdict} "
        f"{BASELINES[comparison['baseline']]}: difference {comparison['difference']:+.3f} "
        f"{format_interval(comparison['interval'], '+.3f')}, paired."
    )
