"""What a study has found, as one JSON document; `status` and `report` print the same one."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from effllava_optuna.policy import Policy, finalists, front_of, hypervolume_by_epoch
from effllava_optuna.report.sureness import comparisons

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import Anatomy, TrialRecord

SCHEMA = 1
_STATES = ("complete", "pruned", "running", "waiting", "fail")


@dataclass(frozen=True)
class StudyFacts:
    """All that is stored of a study.

    Attributes:
        name: Of the study.
        epochs: How many it will have.
        planned: Trials that it will have.
        opened: Epochs that are published.
        finalists: How many policies of the front are reported.
        accuracy: ``expected`` or ``hard``: what the quality is made of.
        eta: Weight of the structural risk in it.
        population: Trials of a generation.
        trials: Those that count.
        digest: Of what was measured.
        anatomy: Of the model; None before it was loaded.
        bundle: What calibration published; None before that.
        updates: What each projector update published, from epoch 1 on.
        metric: How answers are graded in the ``search`` and in the ``report``; None if not known.
        units: Which samples of the hits of a trial belong together; None if not known.
        results: What the end of the study measured; None before that.
        scores: What each reported policy scored on each sample, by split; None before that.
        spec: What the study was told, by table.
        manifest: What its values depend on beside that: versions, machine, weights, samples.
        changes: What of the manifest has changed since, and when.
        times: When its first trial began and its last one ended, in ISO 8601; None: none did.
        failures: How many trials failed, by reason.
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
    anatomy: Anatomy | None = None
    bundle: Mapping[str, Any] | None = None
    updates: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    metric: Mapping[str, str] | None = None
    units: Sequence[int] | None = None
    results: Mapping[str, Any] | None = None
    scores: Mapping[str, Any] | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    changes: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    times: tuple[str | None, str | None] = (None, None)
    failures: Mapping[str, int] = field(default_factory=dict)


def document(facts: StudyFacts) -> dict[str, Any]:
    """Put what is stored of a study into one document.

    What was not measured yet is null: before the end of a study, everything about validation and
    test, and the baselines.
    """
    states = Counter(trial.state for trial in facts.trials)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "study": facts.name,
        "digest": facts.digest,
        "epochs": {"planned": facts.epochs, "opened": facts.opened},
        "trials": {"planned": facts.planned} | {state: states.get(state, 0) for state in _STATES},
        "metric": facts.metric,
        "constant": None,
        "memory": None,
        "dense": None,
        "uniform": None,
        "uniform2": None,
        "front": [],
        "chosen": None,
        "hypervolume": [],
        "risk_spread": _risk_spread(facts),
        "projector": [dict(update) for update in facts.updates],
        "comparisons": [],
        "failures": dict(facts.failures),
        "spec": dict(facts.spec),
        "provenance": {
            "began": facts.times[0],
            "ended": facts.times[1],
            **facts.manifest,
            "changes": [dict(change) for change in facts.changes],
        },
    }
    if facts.bundle is None or facts.anatomy is None:
        return found
    dense = facts.bundle["dense"]
    reference = facts.bundle["reference"]
    found["hypervolume"] = hypervolume_by_epoch(
        facts.trials, facts.opened, (reference[0], reference[1]), facts.accuracy
    )
    found["latency_table"] = {
        "error": facts.bundle["latency"]["error"],
        "spread": facts.bundle["latency"]["spread"],
        "vision_ms": facts.bundle["latency"]["vision_ms"],
        # Studies of earlier versions have no more than that.
        "checks": len(facts.bundle["latency"].get("errors", ())) or None,
        "launched": facts.bundle["latency"].get("launched", []),
        "origin": facts.bundle["latency"].get("origin"),
    }
    if facts.results is not None:
        found |= dict(facts.results)
        found["comparisons"] = comparisons(found["chosen"], facts.scores)
        return found
    found["dense"] = entry(
        policy=Policy.dense(facts.anatomy),
        anatomy=facts.anatomy,
        accuracy_proxy=dense["accuracy"],
        latency_ms=dense["latency_ms"],
        speedup_predicted=1.0,
        parameters=dense["parameters"],
        gflops=dense["gflops"],
    )
    found["front"] = [
        trial_entry(trial, facts.anatomy, dense)
        for trial in finalists(front_of(facts.trials), facts.finalists)
    ]
    return found


def _risk_spread(facts: StudyFacts) -> float | None:
    """Give how far eta times risk spreads over the first generation, in accuracy."""
    first = [trial.risk for trial in facts.trials[: facts.population] if trial.measured]
    return round(facts.eta * (max(first) - min(first)), 6) if first else None


def entry(*, policy: Policy, anatomy: Anatomy, **known: Any) -> dict[str, Any]:
    """Describe one policy; what is not given is null.

    Accuracies and speed-ups are shares and factors; ``*_interval`` are 95 % intervals;
    ``gap`` is the accuracy on the proxy minus that on test.
    """
    found: dict[str, Any] = dict.fromkeys(
        (
            "trial", "epoch", "policy", "quality", "accuracy_proxy", "accuracy_proxy_interval",
            "accuracy_validation", "accuracy_validation_interval", "accuracy_test",
            "accuracy_test_interval", "gap", "risk", "latency_ms", "latency_ms_measured",
            "speedup_predicted", "speedup_measured", "kept_share", "parameters", "gflops",
            "subsets_test",
        )
    )  # fmt: skip
    found["policy"] = {
        site.id: count for site, count in zip(anatomy.sites, policy.keep, strict=True)
    }
    found["kept_share"] = round(policy.kept_share(anatomy), 6)
    unknown = set(known) - set(found)
    if unknown:
        raise KeyError(f"An entry has no {sorted(unknown)}.")
    return found | {name: _plain(value) for name, value in known.items()}


def trial_entry(trial: TrialRecord, anatomy: Anatomy, dense: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the policy of a trial by what the search knows of it.

    Args:
        trial: Measured.
        anatomy: Of the model.
        dense: Of the model: ``latency_ms`` and ``parameters``.
    """
    policy = Policy.of(anatomy, trial.keep)
    return entry(
        policy=policy,
        anatomy=anatomy,
        trial=trial.number,
        epoch=trial.epoch,
        quality=trial.quality,
        accuracy_proxy=trial.accuracy,
        risk=trial.risk,
        latency_ms=trial.latency_ms,
        speedup_predicted=dense["latency_ms"] / trial.latency_ms,
        parameters=dense["parameters"] - anatomy.parameters + policy.parameters(anatomy),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
