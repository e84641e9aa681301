"""Pick a policy among the finalists of a study by limits on latency, size or accuracy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import StudyError
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


@dataclass(frozen=True, slots=True)
class PickRule:
    """Limits that a policy must satisfy; the most accurate policy within them is picked.

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


def pick_policy(facts: StudyFacts, rule: PickRule) -> dict[str, Any]:
    """Pick a policy among the finalists of a study.

    Accuracy is measured on validation; in a study that is not over, on the proxy, cross-fitted.
    Latencies are the measured ones if there are any, else those of the latency table. Accuracy on
    test is passed on, and has no influence.

    Args:
        facts: The stored facts of the study.
        rule: The limits.

    Returns:
        The ``picked`` result row, the ``candidates``, the trials that are ``admissible``, the
        ``split`` that decided, the ``measures`` of the splits, and the ``confidence`` of the
        pick, see `pick_confidence`.

    Raises:
        StudyError: There is no finalist yet, or none is within the limits; the message then
            has the finalist that is closest to each limit.
    """
    document = study_document(facts)
    if not document["front"]:
        raise StudyError(
            f"Study {facts.name!r} has no policy on its front yet.",
            hint="Measure trials first: use `run` or `resume`.",
        )
    split = "proxy" if document["chosen"] is None else "validation"
    candidates = [_candidate(row, document["dense"], split) for row in document["front"]]
    limits = _limits(rule)
    admissible = [
        candidate for candidate in candidates if all(limit.admits(candidate) for limit in limits)
    ]
    if not admissible:
        raise StudyError(_closest(facts.name, candidates, limits), hint="Use a less strict limit.")
    admissible.sort(key=lambda candidate: _rank_key(candidate, rule), reverse=True)
    trials = [candidate["trial"] for candidate in admissible]
    row = next(row for row in document["front"] if row["trial"] == trials[0])
    scores = _scores(facts) if facts.scores is None else facts.scores[split]
    return {
        "study": facts.name,
        "rule": {name: value for name, value in asdict(rule).items() if value is not None},
        "split": split,
        "measures": document["measures"],
        "measured": row["latency_ms_measured"] is not None,
        "picked": row,
        "candidates": candidates,
        "admissible": trials,
        "confidence": pick_confidence(scores, trials, rule.accuracy_drop),
    }


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
        "accuracy_test": row["accuracy_test"],
        "latency_ms": _first_value(row, "latency_ms_measured", "latency_ms"),
        "speedup": _first_value(row, "speedup_measured", "speedup_predicted"),
        "params": round(row["parameters"] / dense["parameters"], 6),
    }


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


def _rank_key(candidate: Mapping[str, Any], rule: PickRule) -> tuple[float, float]:
    """Return the sort key of a candidate: accuracy before speed, or speed before accuracy."""
    accuracy, speed = candidate["accuracy"], -candidate["latency_ms"]
    return (accuracy, speed) if rule.accuracy_drop is None else (speed, accuracy)


def _closest(study: str, candidates: Sequence[Mapping[str, Any]], limits: Sequence[_Limit]) -> str:
    """Describe the limits, each with the finalist that is closest to it."""
    descriptions = []
    for limit in limits:
        values = [(candidate[limit.key], candidate["trial"]) for candidate in candidates]
        value, trial = max(values) if limit.is_minimum else min(values)
        descriptions.append(
            f"{limit.description} (the closest has {value:{limit.spec}}: trial {trial})"
        )
    return (
        f"None of the {len(candidates)} finalists of {study!r} is within the limits: "
        f"{', '.join(descriptions)}."
    )


def pick_table(pick: Mapping[str, Any]) -> TextTable:
    """Build the table of a pick: all finalists, those within the limits, and the confidence.

    Args:
        pick: The result of `pick_policy`.
    """
    latency, speedup = ("ms", "speed-up") if pick["measured"] else ("ms, predicted", "predicted")
    rows = []
    for candidate in pick["candidates"]:
        picked = candidate["trial"] == pick["picked"]["trial"]
        remark = ""
        if picked:
            remark = " (picked)"
        elif pick["rule"] and candidate["trial"] in pick["admissible"]:
            remark = " (within the limits)"
        cells = (
            f"trial {candidate['trial']}{remark}",
            format_number(candidate["accuracy"], ".3f"),
            format_number(candidate["accuracy_drop"], "+.3f"),
            format_number(candidate["latency_ms"], ".1f"),
            format_number(candidate["speedup"], ".2f"),
            format_number(candidate["params"], ".3f"),
            format_number(candidate["accuracy_test"], ".3f"),
        )
        rows.append(TableRow(cells, emphasized=picked))
    columns = (
        "policy", f"{measure_of_split(pick, pick['split'])}, {pick['split']}", "drop", latency,
        speedup, "params", f"{split_heading(pick, 'test')} (not used)",
    )  # fmt: skip
    return TextTable(columns, rows, notes=[_cost(pick), *confidence_notes(pick)])


def _cost(pick: Mapping[str, Any]) -> str:
    """Return what the picked policy loses."""
    trial, split = pick["picked"]["trial"], pick["split"]
    (drop,) = [each["accuracy_drop"] for each in pick["candidates"] if each["trial"] == trial]
    verb = "loses" if drop >= 0 else "gains"
    return (
        f"Trial {trial} {verb} {100 * abs(drop):.1f} points of {measure_of_split(pick, split)} on "
        f"{split}. Only the {len(pick['candidates'])} finalists are measured there; `export "
        "--trial N` takes any trial."
    )
