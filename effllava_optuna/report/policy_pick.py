"""Pick a policy of the front of a study by limits on latency, size or accuracy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from effllava_optuna.errors import StudyError
from effllava_optuna.policy import finalist_merit, meets_budget
from effllava_optuna.report.document import study_document
from effllava_optuna.report.pick_confidence import confidence_notes, pick_confidence
from effllava_optuna.report.text_table import (
    TableRow,
    TextTable,
    format_number,
    measure_of_split,
    split_heading,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.report.document import StudyFacts

Pool = Literal["finalists", "front"]
_POOLS = {"validation": "finalists", "proxy": "policies on the front"}  # by deciding split
_MOST_OTHERS = 8  # rows of the table


@dataclass(frozen=True, slots=True)
class PickRule:
    """Limits that a policy must satisfy; the most accurate policy within them is picked.

    Equally accurate ones are ranked as in a study: those that meet its budget of latency come
    first (without a limit on latency here), then the better quality on the proxy.

    With ``accuracy_drop``, accuracy is a limit as well, and the fastest policy is picked.

    Attributes:
        latency_ms: Largest latency in milliseconds, > 0.
        speedup: Smallest speed-up over the dense model.
        accuracy_drop: Largest loss of accuracy against the dense model, in [0, 1].
        params: Largest number of parameters, as a fraction of the dense model's, in (0, 1].
    """

    latency_ms: float | None = None
    speedup: float | None = None
    accuracy_drop: float | None = None
    params: float | None = None


@dataclass(frozen=True, slots=True)
class _Limit:
    """One limit of a rule.

    Attributes:
        description: The limit in words.
        key: The value of a candidate that is limited.
        is_minimum: Whether ``bound`` is the smallest allowed value; else it is the largest.
        bound: The bound.
        spec: Format of the values.
    """

    description: str
    key: str
    is_minimum: bool
    bound: float
    spec: str

    def admits(self, candidate: Mapping[str, Any]) -> bool:
        value = candidate[self.key]
        if self.bound == float(format(self.bound, self.spec)):  # as the table shows values
            value = float(format(value, self.spec))
        return bool(value >= self.bound if self.is_minimum else value <= self.bound)


def pick_policy(facts: StudyFacts, rule: PickRule, pool: Pool = "finalists") -> dict[str, Any]:
    """Pick a policy among the finalists of a study, or on its whole front.

    Among finalists, accuracy is that on validation and latency the measured one. On the whole
    front, and in a study that is not over, accuracy is the cross-fitted one on the proxy and
    latency that of the latency table: no trial but the finalists is measured at the end. Accuracy
    on test is passed on, and has no influence.

    Args:
        facts: The stored facts of the study.
        rule: The limits.
        pool: The policies that can be picked: ``finalists`` or ``front``. A study that is not
            over has no finalists, and its front is used.

    Returns:
        The ``picked`` result row, the ``candidates``, the trials that are ``admissible``, the
        ``others`` on the front, which cannot be picked from this pool, the ``split`` that decided,
        the ``measures`` of the splits, and the ``confidence`` of the pick, see `pick_confidence`.

    Raises:
        StudyError: There is no policy yet, or none is within the limits; the message then has the
            policy that is closest to each limit.
    """
    document = front = _front_document(facts)
    split = "proxy"
    if facts.results is not None and pool == "finalists":
        document, split = study_document(facts), "validation"
    if not document["front"]:
        raise StudyError(
            f"Study {facts.name!r} has no policy on its front yet.",
            hint="Measure trials first: use `run` or `resume`.",
        )
    candidates = [_candidate(row, document["dense"], split) for row in document["front"]]
    finalists = _finalists_of(facts)
    others = [
        _candidate(row, front["dense"], "proxy")
        for row in front["front"]
        if split == "validation" and row["trial"] not in finalists
    ]
    limits = _limits(rule)
    admissible = _within(limits, candidates)
    if not admissible:
        message = _closest(facts.name, candidates, limits, _POOLS[split])
        raise StudyError(message, hint=_looser(_within(limits, others)))
    budget = asdict(rule)
    if rule.latency_ms is None and rule.speedup is None:
        budget = facts.config.get("search", {})
    admissible.sort(key=lambda candidate: _rank_key(candidate, rule, budget), reverse=True)
    trials = [candidate["trial"] for candidate in admissible]
    row = next(row for row in document["front"] if row["trial"] == trials[0])
    scores = _scores(facts) if facts.scores is None or split == "proxy" else facts.scores[split]
    return {
        "study": facts.name,
        "rule": {name: value for name, value in asdict(rule).items() if value is not None},
        "split": split,
        "measures": document["measures"],
        "measured": row["latency_ms_measured"] is not None,
        "picked": row,
        "finalists": finalists,
        "candidates": candidates,
        "admissible": trials,
        "others": others,
        "confidence": pick_confidence(scores, trials, rule.accuracy_drop),
    }


def _front_document(facts: StudyFacts) -> dict[str, Any]:
    """Return the document of a study before its end, with all trials of the front."""
    return study_document(
        replace(facts, results=None, scores=None, finalists=max(1, len(facts.trials)))
    )


def _finalists_of(facts: StudyFacts) -> list[int]:
    """Return the trials that were measured on validation; none before the end of a study."""
    return [row["trial"] for row in (facts.results or {}).get("front", ())]


def _scores(facts: StudyFacts) -> dict[str, Any]:
    """Return the score of each trial on each proxy sample."""
    hits = {str(trial.number): trial.hits for trial in facts.trials if trial.eligible}
    return {"groups": facts.groups, "hits": hits}


def _candidate(row: Mapping[str, Any], dense: Mapping[str, Any], split: str) -> dict[str, Any]:
    accuracy = row[f"accuracy_{split}"]
    return {
        "trial": row["trial"],
        "accuracy": accuracy,
        "accuracy_drop": round(dense[f"accuracy_{split}"] - accuracy, 6),
        "accuracy_proxy": row["accuracy_proxy"],
        "quality": row["quality"],
        "accuracy_test": row["accuracy_test"],
        "latency_ms": _first_value(row, "latency_ms_measured", "latency_ms"),
        "speedup": _first_value(row, "speedup_measured", "speedup_predicted"),
        "params": round(row["parameters"] / dense["parameters"], 6),
    }


def _within(
    limits: Sequence[_Limit], candidates: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return the candidates that are within all limits."""
    return [each for each in candidates if all(limit.admits(each) for limit in limits)]


def _first_value(row: Mapping[str, Any], *keys: str) -> float:
    return next(float(row[key]) for key in keys if row[key] is not None)


def _limits(rule: PickRule) -> list[_Limit]:
    limits = (
        ("latency_ms", "at most {} ms", False, ".1f"),
        ("speedup", "at least {}x faster", True, ".2f"),
        ("accuracy_drop", "an accuracy drop of at most {}", False, ".4f"),
        ("params", "at most a fraction of {} of the parameters", False, ".3f"),
    )
    return [
        _Limit(
            description=description.format(f"{bound:g}"),
            key=key,
            is_minimum=is_minimum,
            bound=bound,
            spec=spec,
        )
        for key, description, is_minimum, spec in limits
        if (bound := getattr(rule, key)) is not None
    ]


def _rank_key(
    candidate: Mapping[str, Any], rule: PickRule, budget: Mapping[str, float | None]
) -> tuple[float, ...]:
    """Return the sort key of a candidate: the merit in a study before speed, or after it."""
    within_budget = meets_budget(budget, candidate["latency_ms"], candidate["speedup"])
    merit = finalist_merit(
        candidate["accuracy"], candidate["quality"], within_budget=within_budget
    )
    speed = -candidate["latency_ms"]
    return (*merit, speed) if rule.accuracy_drop is None else (speed, *merit)


def _closest(
    study: str, candidates: Sequence[Mapping[str, Any]], limits: Sequence[_Limit], pool: str
) -> str:
    """Describe the limits, each with the policy that is closest to it."""
    descriptions = []
    for limit in limits:
        values = [(candidate[limit.key], candidate["trial"]) for candidate in candidates]
        value, trial = max(values) if limit.is_minimum else min(values)
        descriptions.append(
            f"{limit.description} (the closest has {value:{limit.spec}}: trial {trial})"
        )
    return (
        f"None of the {len(candidates)} {pool} of {study!r} is within the limits: "
        f"{', '.join(descriptions)}."
    )


def _looser(others: Sequence[Mapping[str, Any]]) -> str:
    """Return what to do if no finalist is within the limits, given the others that are."""
    if not others:
        return "Use a less strict limit."
    best = max(others, key=lambda other: other["accuracy"])
    return (
        f"Use a less strict limit, or --whole-front: trial {best['trial']} is within them by its "
        f"{best['accuracy']:.3f} on the proxy and its predicted latency."
    )


def pick_table(pick: Mapping[str, Any]) -> TextTable:
    """Build the table of a pick: the policies, those within the limits, and the confidence.

    Policies of the front that are not finalists come last.

    Args:
        pick: The result of `pick_policy`.
    """
    validated = pick["split"] == "validation"
    rows = [_row(pick, candidate, _remark(pick, candidate)) for candidate in pick["candidates"]]
    others = pick["others"]
    shown = [others[index] for index in _evenly(len(others), _MOST_OTHERS)]
    rows += [_row(pick, other, "", validated=False) for other in shown]
    measured = split_heading(pick, "validation"), split_heading(pick, "test") + "\n(not used)"
    columns = (
        "policy", split_heading(pick, "proxy"), *(measured[:1] if validated else ()), "loss",
        "ms" if validated else "ms,\npredicted",
        "speed-up" if validated else "speed-up,\npredicted",
        "share of\nparameters", *(measured[1:] if validated else ()),
    )  # fmt: skip
    notes = [_cost(pick), *confidence_notes(pick), *_other_notes(pick, len(shown))]
    return TextTable(columns, rows, notes=notes)


def _remark(pick: Mapping[str, Any], candidate: Mapping[str, Any]) -> str:
    if candidate["trial"] == pick["picked"]["trial"]:
        return " (picked)"
    within = pick["rule"] and candidate["trial"] in pick["admissible"]
    return " (within limits)" if within else ""


def _row(
    pick: Mapping[str, Any], candidate: Mapping[str, Any], remark: str, *, validated: bool = True
) -> TableRow:
    """Return a row; latency and speed-up of a policy that was not timed are in parentheses."""
    picked = candidate["trial"] == pick["picked"]["trial"]
    costs = [f"{candidate['latency_ms']:.1f}", f"{candidate['speedup']:.2f}"]
    loss = f"{candidate['accuracy_drop']:+.3f}"
    cells = [f"trial {candidate['trial']}{remark}", f"{candidate['accuracy_proxy']:.3f}"]
    params = f"{candidate['params']:.1%}"
    if pick["split"] != "validation":
        return TableRow((*cells, loss, *costs, params), emphasized=picked)
    if not validated:
        costs = [f"({cost})" for cost in costs]
        return TableRow((*cells, "not measured", "-", *costs, params, "-"), emphasized=picked)
    test = format_number(candidate["accuracy_test"], ".3f")
    cells = [*cells, f"{candidate['accuracy']:.3f}", loss, *costs, params, test]
    return TableRow(cells, emphasized=picked)


def _evenly(length: int, most: int) -> list[int]:
    """Return at most ``most`` evenly spaced indices of a list of ``length``, both ends included.

    Example:
        >>> _evenly(3, 4), _evenly(9, 3)
        ([0, 1, 2], [0, 4, 8])
    """
    if length <= most:
        return list(range(length))
    return [round(index * (length - 1) / (most - 1)) for index in range(most)]


def _cost(pick: Mapping[str, Any]) -> str:
    """Return what the picked policy loses, and on which samples."""
    trial, split = pick["picked"]["trial"], pick["split"]
    (drop,) = [each["accuracy_drop"] for each in pick["candidates"] if each["trial"] == trial]
    verb = "loses" if drop >= 0 else "gains"
    cost = (
        f"Trial {trial} {verb} {100 * abs(drop):.1f} points of {measure_of_split(pick, split)} on "
        f"{split} against the dense model."
    )
    if split == "validation":
        return cost
    cost += " The search has selected policies on these samples: on others, expect a larger loss."
    if trial in pick["finalists"]:
        return f"{cost} This trial is a finalist: without --whole-front, validation decides."
    return f"{cost} This trial was not measured on validation." if pick["finalists"] else cost


def _other_notes(pick: Mapping[str, Any], shown: int) -> list[str]:
    """Describe the policies of the front that are not finalists; nothing if there are none."""
    others = pick["others"]
    if not others:
        return []
    count = f"{shown} of {len(others)}" if shown < len(others) else f"{len(others)}"
    return [
        f"Not measured: policies of the front that are no finalists ({count} shown). They have an "
        "accuracy on the proxy and a (predicted) latency, by which --whole-front picks among all."
    ]
