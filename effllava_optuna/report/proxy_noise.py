"""The noise of the proxy set: how far another draw of its samples would change the choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from effllava_optuna.policy import bootstrap_means

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.report.document import StudyFacts

_MOST_WINNERS = 5  # listed in the document
_MOST = 0.5  # of the draws
_FLOOR = 1.96  # standard deviations: half the width of a 95 % interval
_DIGITS = 9  # equal qualities differ by rounding errors, which must not decide


def proxy_noise(facts: StudyFacts, document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Resample the groups of the proxy set, and compare all policies of the search on each draw.

    Every eligible trial takes part, of all epochs, as in the front that finalists come from. The
    policies stay those of the search: that another draw would also have led the search to other
    policies is not included.

    Args:
        facts: The stored facts of the study.
        document: Its document with the rows of the front and, after the end of the study, of the
            chosen policy and the uniform-by-kind baseline.

    Returns:
        ``samples``, ``groups``, ``resamples`` and the number of ``policies``; the ``best`` policy
        by quality on the proxy and, after the end, the ``chosen`` one, each with the fraction of
        the draws on which it is the best; ``finalists_fraction``, that of all finalists together;
        ``winners``, the most frequent best policies; ``as_good``, the number of policies, the
        best included, whose quality is within 1.96 deviations of the best; and two differences in
        quality with their standard ``deviation`` over draws: ``second``, the best minus the
        second policy, whose ``floor`` is the half width of the 95 % interval, and
        ``uniform_by_kind``, the chosen policy minus the baseline. None if fewer than two policies
        have a quality score for each sample, or the samples form one group.
    """
    groups = facts.groups or ()
    trials, position = _distinct_policies(facts.trials)
    stored = all(len(trial.quality_scores) == len(groups) for trial in trials)
    if not stored or len(trials) < 2 or len(set(groups)) < 2:
        return None
    qualities = _resampled_qualities(trials, groups)
    wins = np.bincount(qualities.argmax(0), minlength=len(trials))
    fractions = wins / qualities.shape[1]

    def share(number: int) -> dict[str, Any]:
        return {"trial": number, "fraction": round(float(fractions[position[number]]), 4)}

    best, second, *_ = sorted(range(len(trials)), key=lambda index: -trials[index].quality)
    by_wins = sorted(range(len(trials)), key=lambda index: (-wins[index], trials[index].number))
    deviations = (qualities[best] - qualities).std(1)
    deviation = float(deviations[second])
    shortfalls = trials[best].quality - np.array([trial.quality for trial in trials])
    as_good = np.round(shortfalls - _FLOOR * deviations, _DIGITS) <= 0
    chosen = document["chosen"]
    finalists = {position[row["trial"]] for row in document["front"]}
    return {
        "samples": len(groups),
        "groups": len(set(groups)),
        "resamples": qualities.shape[1],
        "policies": len(trials),
        "best": share(trials[best].number),
        "chosen": None if chosen is None else share(chosen["trial"]),
        "finalists_fraction": round(float(fractions[sorted(finalists)].sum()), 4),
        "winners": [
            share(trials[index].number) for index in by_wins[:_MOST_WINNERS] if wins[index]
        ],
        "as_good": int(as_good.sum()),
        "second": {
            "trial": trials[second].number,
            "difference": round(trials[best].quality - trials[second].quality, 6),
            "deviation": round(deviation, 6),
            "floor": round(_FLOOR * deviation, 6),
        },
        "uniform_by_kind": _above_baseline(facts, document),
    }


def _distinct_policies(
    trials: Sequence[TrialRecord],
) -> tuple[list[TrialRecord], dict[int, int]]:
    """Return one eligible trial for each policy and weight state, the fastest first.

    Among equal qualities, the front has the fastest policy; in this order, the first maximum is
    that policy.

    Returns:
        The trials, and by number of any eligible trial the position of its policy.
    """
    eligible = [trial for trial in trials if trial.eligible]
    distinct: list[TrialRecord] = []
    positions: dict[tuple[str, tuple[int, ...]], int] = {}
    position_of = {}
    for trial in sorted(eligible, key=lambda trial: (trial.latency_ms, trial.number)):
        key = trial.weight_state, trial.widths
        if key not in positions:
            positions[key] = len(distinct)
            distinct.append(trial)
        position_of[trial.number] = positions[key]
    return distinct, position_of


def _resampled_qualities(trials: Sequence[TrialRecord], groups: Sequence[int]) -> Any:
    """Return the quality of each trial on each draw; risk and the user's term do not vary."""
    scores = np.array([trial.quality_scores for trial in trials])
    penalties = scores.mean(1) - np.array([trial.quality for trial in trials])
    return np.round(bootstrap_means(scores, groups) - penalties[:, None], _DIGITS)


def _above_baseline(facts: StudyFacts, document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return by how much the chosen policy exceeds the uniform-by-kind baseline in quality."""
    chosen, baseline = document["chosen"], document["uniform_by_kind"]
    if chosen is None or baseline is None or facts.scores is None:
        return None
    scores = facts.scores["proxy"].get("quality_scores")
    if scores is None:
        return None
    differences = np.subtract(scores[str(chosen["trial"])], scores["uniform_by_kind"])
    means = bootstrap_means(differences[None], facts.groups)
    return {
        "difference": round(chosen["quality"] - baseline["quality"], 6),
        "deviation": round(float(means.std()), 6),
    }


def resolution_notes(document: Mapping[str, Any]) -> list[str]:
    """Return one sentence on how many policies could be the best; nothing if it is not known."""
    noise = document["noise"]
    if noise is None:
        return []
    return [
        f"By the {noise['samples']:,} proxy samples alone, {noise['as_good']:,} of the "
        f"{noise['policies']:,} policies could be the best: their quality differs from that of "
        f"trial {noise['best']['trial']} by no more than the noise of these samples."
    ]


def noise_notes(document: Mapping[str, Any]) -> list[str]:
    """Describe the noise of the proxy set, a sentence per line; empty if it is not known."""
    noise = document["noise"]
    if noise is None:
        return []
    best, second, chosen = noise["best"], noise["second"], noise["chosen"]
    grouped = "" if noise["groups"] == noise["samples"] else f" in {noise['groups']:,} groups"
    others = [winner for winner in noise["winners"] if winner["trial"] != best["trial"]]
    if chosen is not None and chosen["trial"] != best["trial"]:
        others = [chosen, *(winner for winner in others if winner["trial"] != chosen["trial"])]
    shares = [
        f"trial {other['trial']}"
        + (" (chosen)" if other == chosen else "")
        + f" in {other['fraction']:.0%}"
        for other in others[:3]
    ]
    notes = [
        f"On another draw of the {noise['samples']:,} proxy samples{grouped}, the best of "
        f"{noise['policies']:,} policies by quality would be trial {best['trial']} in "
        f"{best['fraction']:.0%} of {noise['resamples']:,} resamples"
        + (f" ({', '.join(shares)})" if shares else "")
        + f", and one of the finalists in {noise['finalists_fraction']:.0%}"
        + (": none is ahead in most of them." if best["fraction"] < _MOST else "."),
        f"Trial {best['trial']} exceeds trial {second['trial']}, the second, by "
        f"{second['difference']:.4f} in quality on the proxy; the standard deviation over draws "
        f"is {second['deviation']:.4f}: differences below {second['floor']:.4f} are within the "
        "noise of the draw.",
    ]
    baseline = noise["uniform_by_kind"]
    if baseline is not None:
        notes.append(
            "The chosen policy exceeds the best uniform-by-kind policy by "
            f"{baseline['difference']:+.4f} in quality on the proxy; the standard deviation over "
            f"draws is {baseline['deviation']:.4f}."
        )
    return notes
