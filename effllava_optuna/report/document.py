"""The results of a study as one JSON document, which `status` and `report` print."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from effllava_optuna.policy import Policy, front_of, hypervolume_by_epoch, select_finalists
from effllava_optuna.report.finalist_choices import choices_by_rule
from effllava_optuna.report.paired_differences import compare_with_baselines
from effllava_optuna.report.proxy_noise import proxy_noise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import ModelStructure, TrialRecord

SCHEMA = 2
STATES = ("complete", "pruned", "running", "waiting", "fail")
_ROW_FIELDS = (
    "trial", "epoch", "policy", "quality", "accuracy_proxy", "accuracy_proxy_interval",
    "accuracy_validation", "accuracy_validation_interval", "accuracy_test",
    "accuracy_test_interval", "gap", "risk", "quality_smoothed", "latency_ms",
    "latency_ms_measured", "speedup_predicted", "speedup_measured", "keep_ratio", "parameters",
    "gflops", "speedup_parts", "subsets_test",
)  # fmt: skip


@dataclass(frozen=True)
class StudyFacts:
    """Everything that is stored about a study and that a report needs.

    Attributes:
        name: Name of the study.
        epochs: Number of planned epochs.
        planned: Number of planned trials.
        opened: Number of published epochs.
        finalists: Number of policies of the front that are reported.
        accuracy: The accuracy in the quality: ``expected`` or ``hard``.
        eta: Weight of the structural risk in the quality.
        population: Number of trials per generation.
        trials: Records of the trials.
        digest: Digest of the measured values.
        structure: Structure of the model; None before the model was loaded.
        calibration: The published calibration; None before it was published.
        updates: The published projector updates, from epoch 1 on.
        sensitivity: The ``curves`` by component id and width, and their ``source``, ``measured``
            or ``residual``; None: there are none.
        metric: Name of the grading rule in the ``search`` and in the ``report``; None before
            the task was loaded.
        measures: Whether the scores are an ``accuracy`` or an ``agreement``, by split.
        groups: Group of each proxy sample, in the order of the hits of a trial.
        results: Values that were measured at the end of the study; None before that.
        scores: Score of each reported policy on each sample, by split; None before the end of
            the study.
        has_budget: Whether the study limits latency or size.
        config: The study file, by table.
        manifest: Versions, machine, and digests of weights and samples.
        changes: Changes of the manifest since the study began, with their times.
        times: Start of the first trial and end of the last one, in ISO 8601; None if there is
            no such trial.
        failures: Number of failed trials, by reason.
    """

    name: str
    epochs: int
    planned: int
    opened: int
    finalists: int
    accuracy: str
    eta: float
    population: int
    trials: Sequence[TrialRecord]
    digest: str
    structure: ModelStructure | None = None
    calibration: Mapping[str, Any] | None = None
    updates: Sequence[Mapping[str, Any]] = ()
    sensitivity: Mapping[str, Any] | None = None
    metric: Mapping[str, str] | None = None
    measures: Mapping[str, str] = field(default_factory=dict)
    groups: Sequence[int] = ()
    results: Mapping[str, Any] | None = None
    scores: Mapping[str, Any] | None = None
    has_budget: bool = True
    config: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    changes: Sequence[Mapping[str, Any]] = ()
    times: tuple[str | None, str | None] = (None, None)
    failures: Mapping[str, int] = field(default_factory=dict)


def study_document(facts: StudyFacts) -> dict[str, Any]:
    """Build the JSON document of a study.

    Values that are not measured yet are null: before the end of a study, these are the uniform
    baselines and all values on validation and test.
    """
    document = _unmeasured_document(facts)
    if facts.calibration is None or facts.structure is None:
        return document
    dense, latency = facts.calibration["dense"], facts.calibration["latency"]
    accuracy, latency_ms = facts.calibration["reference"]
    document["hypervolume"] = hypervolume_by_epoch(
        facts.trials, facts.opened, (accuracy, latency_ms), facts.accuracy
    )
    document["latency_table"] = {
        "error": latency["error"],
        "spread": latency["spread"],
        "vision_ms": latency["vision_ms"],
        "checks": len(latency["errors"]),
        "rounds": latency.get("rounds"),  # older tables do not have it
        "corrections": [
            {name: update[name] for name in ("latency_factor", "latency_errors")}
            for update in facts.updates
        ],
        "finalists_error": None,
        "launched": latency["launched"],
        "origin": latency["origin"],
    }
    if facts.results is not None and facts.scores is not None:
        document |= dict(facts.results)
        document["latency_table"]["finalists_error"] = _mean_error(document["front"])
        document["comparisons"] = compare_with_baselines(
            document["chosen"], facts.scores, facts.measures
        )
        document["choices"] = choices_by_rule(document, facts.scores["test"])
        document["noise"] = proxy_noise(facts, document)
        return document
    document["dense"] = result_row(
        Policy.dense(facts.structure),
        accuracy_proxy=dense["accuracy"],
        latency_ms=dense["latency_ms"],
        speedup_predicted=1.0,
        parameters=dense["parameters"],
        gflops=dense["gflops"],
    )
    selected = select_finalists(
        front_of(facts.trials),
        facts.finalists,
        facts.structure,
        facts.groups or (),
        has_budget=facts.has_budget,
    )
    document["front"] = [trial_result_row(trial, facts.structure, dense) for trial in selected]
    document["noise"] = proxy_noise(facts, document)
    return document


def _mean_error(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean absolute error of predicted latencies, relative to the dense model."""
    errors = [
        abs(float(row["speedup_measured"] / row["speedup_predicted"]) - 1)
        for row in rows
        if row["speedup_measured"] is not None
    ]
    return sum(errors) / len(errors) if errors else None


def _unmeasured_document(facts: StudyFacts) -> dict[str, Any]:
    """Return a document with all keys and the values that need no calibration."""
    states = Counter(trial.state for trial in facts.trials)
    began, ended = facts.times
    return {
        "schema": SCHEMA,
        "study": facts.name,
        "digest": facts.digest,
        "epochs": {"planned": facts.epochs, "opened": facts.opened},
        "trials": {"planned": facts.planned} | {state: states.get(state, 0) for state in STATES},
        "metric": facts.metric,
        "measures": dict(facts.measures),
        "constant": None,
        "memory": None,
        "dense": None,
        "uniform": None,
        "uniform_by_kind": None,
        "front": [],
        "chosen": None,
        "hypervolume": [],
        "latency_table": None,
        "risk_spread": _risk_spread(facts),
        "projector": [dict(update) for update in facts.updates],
        "comparisons": [],
        "choices": [],
        "noise": None,
        "sensitivity": None if facts.sensitivity is None else dict(facts.sensitivity),
        "failures": dict(facts.failures),
        "config": dict(facts.config),
        "provenance": {
            "began": began,
            "ended": ended,
            **facts.manifest,
            "changes": [dict(change) for change in facts.changes],
        },
    }


def _risk_spread(facts: StudyFacts) -> float | None:
    """Return the range of eta * risk over the first generation, in units of accuracy."""
    risks = [trial.risk for trial in facts.trials[: facts.population] if trial.measured]
    return round(facts.eta * (max(risks) - min(risks)), 6) if risks else None


def result_row(policy: Policy, **values: Any) -> dict[str, Any]:
    """Build the result row of a policy: its widths, its keep ratio, and ``values``.

    Fields that are not in ``values`` are None. Accuracies are in [0, 1], speed-ups are factors,
    ``*_interval`` are 95 % intervals, ``gap`` is the accuracy on the proxy minus that on test,
    None if only one of them is an agreement (``measures`` of the document),
    ``quality_smoothed`` is the quality by `effllava_optuna.report.smoothed_qualities`, and
    ``speedup_parts`` has the factors of image tokens and of widths by phase.

    Raises:
        KeyError: A result row has no field of that name.
    """
    unknown = set(values) - set(_ROW_FIELDS)
    if unknown:
        raise KeyError(
            f"A result row has no field {', '.join(sorted(unknown))}; it has "
            f"{', '.join(_ROW_FIELDS)}."
        )
    row: dict[str, Any] = dict.fromkeys(_ROW_FIELDS)
    row["policy"] = {
        component.id: width
        for component, width in zip(policy.structure.components, policy.widths, strict=True)
    }
    row["keep_ratio"] = round(policy.keep_ratio, 6)
    return row | {name: _to_json(value) for name, value in values.items()}


def trial_result_row(
    trial: TrialRecord, structure: ModelStructure, dense: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the result row of a measured trial from the values that the search measured.

    Args:
        trial: The record of the trial.
        structure: The structure of the model.
        dense: ``latency_ms`` and ``parameters`` of the dense model.
    """
    policy = Policy.of(structure, trial.widths)
    return result_row(
        policy,
        trial=trial.number,
        epoch=trial.epoch,
        quality=trial.quality,
        accuracy_proxy=trial.accuracy,
        risk=trial.risk,
        latency_ms=trial.latency_ms,
        speedup_predicted=dense["latency_ms"] / trial.latency_ms,
        parameters=dense["parameters"] - structure.parameters + policy.parameters,
    )


def _to_json(value: Any) -> Any:
    """Round floats to six digits, and replace NaN and infinity by None."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    return value
