"""Choose a policy from the front of a study by a rule, and say how sure the choice is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from effllava_optuna.errors import StudyError
from effllava_optuna.policy import bootstrap_interval, bootstrap_means
from effllava_optuna.report.document import document
from effllava_optuna.report.sureness import difference
from effllava_optuna.report.tables import number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from effllava_optuna.report.document import StudyFacts

_SURE = 0.95


@dataclass(frozen=True, slots=True)
class Rule:
    """What a policy must keep to; of those that do, the most accurate one is picked.

    With ``accuracy_drop`` accuracy is a limit, too, and the fastest one is picked.

    Attributes:
        latency_ms: At most so many milliseconds, > 0.
        speedup: At least so many times faster than the dense model.
        accuracy_drop: At most so much less accurate than the dense model, in [0, 1].
        params: At most this share of the dense model's parameters, in (0, 1].
    """

    latency_ms: float | None = None
    speedup: float | None = None
    accuracy_drop: float | None = None
    params: float | None = None


@dataclass(frozen=True, slots=True)
class _Limit:
    """One condition of a rule.

    Attributes:
        told: It in words.
        value: What a row has.
        least: Whether that must be at least ``bound``; else at most.
        bound: What it is held to.
        form: How to print values.
    """

    told: str
    value: str
    least: bool
    bound: float
    form: str

    def holds(self, candidate: Mapping[str, Any]) -> bool:
        mine = candidate[self.value]
        return bool(mine >= self.bound if self.least else mine <= self.bound)


def pick(facts: StudyFacts, rule: Rule) -> dict[str, Any]:
    """Pick a policy among the finalists of a study.

    By accuracy on validation; in a study that is not over, by cross-fitted accuracy on the proxy.
    Latencies are the measured ones where there are such, else those of the table. What test says
    is passed on, and plays no part.

    Args:
        facts: Of the study.
        rule: What the policy must keep to.

    Returns:
        The ``picked`` entry, the ``candidates`` and which of them keep to the rule, by which
        ``split`` it was picked, and how ``sure`` that is.

    Raises:
        StudyError: There is no finalist yet, or none keeps to the rule: the closest is named.
    """
    found = document(facts)
    if not found["front"]:
        raise StudyError(
            f"Study {facts.name!r} has no policy on its front yet.",
            hint="Let it measure some: `run` or `resume`.",
        )
    split = "proxy" if found["chosen"] is None else "validation"
    candidates = [_candidate(row, found["dense"], split) for row in found["front"]]
    limits = _limits(rule)
    left = [one for one in candidates if all(limit.holds(one) for limit in limits)]
    if not left:
        raise StudyError(_closest(facts.name, candidates, limits), hint="Ask for less.")
    left.sort(key=lambda one: _merit(one, rule), reverse=True)
    row = next(row for row in found["front"] if row["trial"] == left[0]["trial"])
    answered = _answered(facts, split)
    return {
        "study": facts.name,
        "rule": {name: value for name, value in asdict(rule).items() if value is not None},
        "split": split,
        "measured": row["latency_ms_measured"] is not None,
        "picked": row,
        "candidates": candidates,
        "allowed": [one["trial"] for one in left],
        "sure": None if answered is None else _sure(answered, left, rule),
    }


def _answered(facts: StudyFacts, split: str) -> Mapping[str, Any] | None:
    """Give what the finalists scored on each sample; None: an earlier version kept no scores."""
    if facts.scores is not None:
        found: Mapping[str, Any] = facts.scores[split]
        return found
    if split != "proxy" or facts.units is None:
        return None
    hits = {str(trial.number): trial.hits for trial in facts.trials if trial.eligible}
    return {"units": facts.units, "hits": hits}


def _candidate(row: Mapping[str, Any], dense: Mapping[str, Any], split: str) -> dict[str, Any]:
    accuracy = row[f"accuracy_{split}"]
    return {
        "trial": row["trial"],
        "accuracy": accuracy,
        "accuracy_drop": round(dense[f"accuracy_{split}"] - accuracy, 6),
        "accuracy_test": row["accuracy_test"],
        "latency_ms": _known(row, "latency_ms_measured", "latency_ms"),
        "speedup": _known(row, "speedup_measured", "speedup_predicted"),
        "params": round(row["parameters"] / dense["parameters"], 6),
    }


def _known(row: Mapping[str, Any], *keys: str) -> float:
    return next(float(row[key]) for key in keys if row[key] is not None)


def _limits(rule: Rule) -> list[_Limit]:
    asked = (
        ("latency_ms", "at most {} ms", False, ".1f"),
        ("speedup", "at least {}x faster", True, ".2f"),
        ("accuracy_drop", "an accuracy drop of at most {}", False, ".4f"),
        ("params", "at most a share of {} of the parameters", False, ".3f"),
    )
    return [
        _Limit(told.format(f"{bound:g}"), value, least, bound, form)
        for value, told, least, form in asked
        if (bound := getattr(rule, value)) is not None
    ]


def _merit(found: Mapping[str, Any], rule: Rule) -> tuple[float, float]:
    by_accuracy = found["accuracy"], -found["latency_ms"]
    return by_accuracy if rule.accuracy_drop is None else (by_accuracy[1], by_accuracy[0])


def _closest(study: str, candidates: Sequence[Mapping[str, Any]], limits: Sequence[_Limit]) -> str:
    """Say what was asked for, and how near the finalists come to it."""
    told = []
    for limit in limits:
        values = [(found[limit.value], found["trial"]) for found in candidates]
        value, trial = max(values) if limit.least else min(values)
        told.append(f"{limit.told} (the closest has {value:{limit.form}}: trial {trial})")
    return f"No finalist of {study!r} (of {len(candidates)}) keeps to this: {', '.join(told)}."


def _sure(
    answered: Mapping[str, Any], left: Sequence[Mapping[str, Any]], rule: Rule
) -> dict[str, Any]:
    """Say how far resampling the samples would have changed the pick.

    Args:
        answered: What each policy scored on each sample of the split.
        left: The policies that keep to the rule, the picked one first.
        rule: What was asked for.
    """
    units, hits = answered["units"], answered["hits"]
    names = [str(found["trial"]) for found in left]
    means = bootstrap_means([hits[name] for name in names], units)
    low, high = bootstrap_interval(hits[names[0]], units)
    found: dict[str, Any] = {
        "samples": len(units),
        "interval": [round(low, 6), round(high, 6)],
        "best": None,
        "runner_up": None,
        "drop": None,
    }
    if rule.accuracy_drop is None and len(names) > 1:
        # Policies that answer alike tie: either is as good a pick.
        found["best"] = round(float((means[0] >= means.max(0)).mean()), 4)
        found["runner_up"] = {
            "trial": left[1]["trial"],
            **difference(answered, names[0], names[1]),
        }
    if rule.accuracy_drop is not None and "dense" in hits:
        lost = np.subtract(hits["dense"], hits[names[0]])
        low, high = bootstrap_interval(lost, units, bounds=(-1.0, 1.0))
        within = float((bootstrap_means(lost[None], units) <= rule.accuracy_drop).mean())
        found["drop"] = {
            "value": round(float(lost.mean()), 6),
            "interval": [round(low, 6), round(high, 6)],
            "within": round(within, 4),
        }
    return found


def picked(found: Mapping[str, Any]) -> RenderableType:
    """Show a pick: all finalists, which of them keep to the rule, and how sure it is."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("policy")
    ms, faster = ("ms", "speed-up") if found["measured"] else ("ms, predicted", "predicted")
    for name in (f"accuracy, {found['split']}", "drop", ms, faster, "params", "test (not used)"):
        table.add_column(name, justify="right")
    mine = found["picked"]["trial"]
    for one in found["candidates"]:
        keeps = "  keeps to the rule" if one["trial"] in found["allowed"] and found["rule"] else ""
        table.add_row(
            f"trial {one['trial']}{'  <- picked' if one['trial'] == mine else keeps}",
            number(one["accuracy"], ".3f"),
            number(one["accuracy_drop"], "+.3f"),
            number(one["latency_ms"], ".1f"),
            number(one["speedup"], ".2f"),
            number(one["params"], ".3f"),
            number(one["accuracy_test"], ".3f"),
            style="bold" if one["trial"] == mine else None,
        )
    return Group(table, Text(f"\n{doubt(found)}"))


def doubt(found: Mapping[str, Any]) -> str:
    """Say in a sentence or two how sure a pick is."""
    sure, split = found["sure"], found["split"]
    if sure is None:
        return "How sure this is cannot be said: the study kept no scores of single samples."
    low, high = sure["interval"]
    told = (
        f"Its accuracy on {split} is {found['picked'][f'accuracy_{split}']:.3f} "
        f"[{low:.3f}, {high:.3f}], {sure['samples']} samples."
    )
    if sure["drop"] is not None:
        drop, asked = sure["drop"], found["rule"]["accuracy_drop"]
        low, high = drop["interval"]
        told += (
            f" It loses {drop['value']:.3f} [{low:+.3f}, {high:+.3f}]; with other samples of this "
            f"kind the loss would be {asked:g} or less in {drop['within']:.0%} of cases"
        )
        told += (
            "." if drop["within"] >= _SURE else ": not sure; ask for less, or validate on more."
        )
    if sure["runner_up"] is not None:
        rival = sure["runner_up"]
        low, high = rival["interval"]
        told += (
            f" Trial {rival['trial']} comes next, {rival['difference']:.3f} [{low:+.3f}, "
            f"{high:+.3f}] behind; with other samples of this kind the pick would be the best of "
            f"these {len(found['allowed'])} in {sure['best']:.0%} of cases"
        )
        told += "." if sure["best"] >= _SURE else ": others are about as good."
    if len(found["allowed"]) == 1 and found["rule"]:
        told += " No other finalist keeps to the rule."
    return told
