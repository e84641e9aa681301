"""Read trials as records."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import astuple
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from effllava_optuna.policy import TrialRecord
from effllava_optuna.samplers import counted, slot_of
from effllava_optuna.study.storage import CONSTRAINTS, REASON

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


def trials_of(study: Study) -> list[TrialRecord]:
    """Give the trials that count, by number: of several with one slot, one; and those without."""
    trials = study.get_trials(deepcopy=False)
    kept = {trial.number for trial in counted(trials).values()}
    return [record_of(trial) for trial in trials if slot_of(trial) is None or trial.number in kept]


def failures_of(study: Study) -> Counter[str]:
    """Count the trials that failed, by reason."""
    trials = study.get_trials(deepcopy=False)
    return Counter(trial.user_attrs[REASON] for trial in trials if REASON in trial.user_attrs)


def digest_of(study: Study) -> str:
    """Identify what the search measured: slot, parameters and values of every slot that completed.

    Slots that a script of the user pruned count, without values. A study that was
    killed and resumed has the digest of one that was left alone, given the same calibration,
    machine and number of threads.
    """
    measured = [
        [list(astuple(slot)), sorted(trial.params.items()), trial.values]
        for slot, trial in counted(study.get_trials(deepcopy=False)).items()
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    ]
    return hashlib.sha256(json.dumps(measured).encode()).hexdigest()[:16]


def record_of(trial: FrozenTrial) -> TrialRecord:
    """Read one trial."""
    attrs = trial.user_attrs
    complete = trial.state == TrialState.COMPLETE and bool(trial.values)
    quality, latency = trial.values if complete else (math.nan, math.nan)
    violations = trial.system_attrs.get(CONSTRAINTS, ())
    return TrialRecord(
        number=trial.number,
        state=trial.state.name.lower() if complete or not trial.values else "fail",
        epoch=attrs.get("epoch"),
        kind=attrs.get("kind", "foreign"),
        origin=attrs.get("origin"),
        keep=tuple(attrs.get("keep", ())),
        quality=quality,
        latency_ms=latency,
        accuracy=attrs.get("accuracy", math.nan),
        expected=attrs.get("expected", math.nan),
        risk=attrs.get("risk", math.nan),
        kept_share=attrs.get("kept_share", math.nan),
        feasible=all(violation <= 0 for violation in violations),
        basis=attrs.get("basis", ""),
        hits=tuple(map(float, attrs.get("hits", ()))),
    )
