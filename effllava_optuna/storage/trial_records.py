"""Reading the trials of a study as records."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import astuple
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from effllava_optuna.errors import StudyError
from effllava_optuna.policy import TrialRecord
from effllava_optuna.samplers import effective_trials, slot_of
from effllava_optuna.storage.names import CONSTRAINTS, REASON

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optuna import Study
    from optuna.trial import FrozenTrial

    from effllava_optuna.policy import ModelStructure


def effective_records(study: Study) -> list[TrialRecord]:
    """Return the effective trial of each slot and all trials without a slot, by number."""
    trials = study.get_trials(deepcopy=False)
    effective = {trial.number for trial in effective_trials(trials).values()}
    return [
        record_of(trial) for trial in trials if slot_of(trial) is None or trial.number in effective
    ]


def failure_counts(study: Study) -> Counter[str]:
    """Count the failed trials by reason."""
    trials = study.get_trials(deepcopy=False)
    return Counter(trial.user_attrs[REASON] for trial in trials if REASON in trial.user_attrs)


def search_digest(study: Study) -> str:
    """Return a digest of slot, parameters and values of every measured slot.

    Slots that a user's script pruned count, without values. A study that was killed and resumed
    has the digest of one that was not interrupted, given the same calibration, the same published
    corrections of its latency table, machine and number of threads.
    """
    measured = [
        [list(astuple(slot)), sorted(trial.params.items()), trial.values]
        for slot, trial in effective_trials(study.get_trials(deepcopy=False)).items()
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    ]
    return hashlib.sha256(json.dumps(measured).encode()).hexdigest()[:16]


def record_of(trial: FrozenTrial) -> TrialRecord:
    """Convert a trial to a record."""
    attrs = trial.user_attrs
    complete = trial.state == TrialState.COMPLETE and bool(trial.values)
    quality, latency_ms = trial.values if complete else (math.nan, math.nan)
    violations = trial.system_attrs.get(CONSTRAINTS, ())
    return TrialRecord(
        number=trial.number,
        state=trial.state.name.lower() if complete or not trial.values else "fail",
        epoch=attrs.get("epoch"),
        kind=attrs.get("kind", "user"),
        origin=attrs.get("origin"),
        widths=tuple(attrs.get("widths", ())),
        quality=quality,
        latency_ms=latency_ms,
        accuracy=attrs.get("accuracy", math.nan),
        expected=attrs.get("expected", math.nan),
        risk=attrs.get("risk", math.nan),
        keep_ratio=attrs.get("keep_ratio", math.nan),
        feasible=all(violation <= 0 for violation in violations),
        weight_state=attrs.get("weight_state", ""),
        hits=tuple(map(float, attrs.get("hits", ()))),
        quality_scores=tuple(map(float, attrs.get("quality_scores", ()))),
    )


def measured_curves(study: Study, structure: ModelStructure) -> dict[str, dict[int, float]]:
    """Return what narrowing each component alone has added to the loss on the proxy, in nats.

    Returns:
        By component and width, from the trials that epoch 0 has measured for this; components
        that share a parameter have the same values. Empty if there are none.
    """
    dense = [component.width for component in structure.components]
    losses = {
        tuple(trial.user_attrs["widths"]): -trial.user_attrs["log_probability"]
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.user_attrs.get("kind") == "curve" and trial.user_attrs["epoch"] == 0
    }
    base = losses.pop(tuple(dense), None)
    curves: dict[str, dict[int, float]] = {}
    for widths, loss in losses.items() if base is not None else ():
        for component, width in zip(structure.components, widths, strict=True):
            if width != component.width:
                curves.setdefault(component.id, {})[width] = loss - base
    return curves


def compact_scores(scores: Iterable[float]) -> list[float]:
    """Return scores as they are stored: 0 and 1 as integers, others with six digits."""
    return [int(score) if score in (0, 1) else round(score, 6) for score in scores]


def measured_record(study: Study, number: int) -> TrialRecord:
    """Return the record of a trial that was measured.

    Raises:
        StudyError: There is no such trial, or it was not measured.
    """
    trials = study.get_trials(deepcopy=False)
    if 0 <= number < len(trials):
        record = record_of(trials[number])
        if record.measured:
            return record
    raise StudyError(
        f"Trial {number} of {study.study_name!r} was not measured.",
        hint="Choose a complete trial; `status` lists the front.",
    )
