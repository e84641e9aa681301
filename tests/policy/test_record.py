"""What reports make of trials."""

from __future__ import annotations

from dataclasses import replace
from math import isnan, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effllava_optuna.policy import (
    TrialRecord,
    front_of,
    hypervolume,
    hypervolume_by_epoch,
    with_latest_correction,
    within_limit,
)

TRIAL = TrialRecord(
    number=0,
    state="complete",
    epoch=0,
    kind="child",
    origin=None,
    widths=(4, 32),
    quality=0.5,
    latency_ms=10.0,
    accuracy=0.6,
    expected=0.55,
    risk=0.1,
    keep_ratio=1.0,
    feasible=True,
    weight_state="b",
    hits=(1.0, 0.0),
)

VALUES = st.integers(0, 9).map(float)
LEFT_OUT: list[dict[str, Any]] = [
    {"state": "fail", "quality": nan},
    {"kind": "user"},
    {"feasible": False},
]
FATES = st.sampled_from([{}, {}, {}, *LEFT_OUT])
TRIALS = st.lists(st.tuples(VALUES, VALUES, FATES), max_size=12).map(
    lambda drawn: [
        replace(TRIAL, **({"number": number, "quality": quality, "latency_ms": latency} | fate))
        for number, (quality, latency, fate) in enumerate(drawn)
    ]
)


@given(trials=TRIALS)
def test_the_front_holds_eligible_trials_that_no_eligible_one_beats(
    trials: list[TrialRecord],
) -> None:
    front = front_of(trials)
    able = [t for t in trials if t.state == "complete" and t.feasible and t.kind != "user"]
    assert all(trial in able for trial in front)
    values = {(t.quality, t.latency_ms) for t in front}
    assert len(values) == len(front)
    for trial in able:
        beaten = any(
            o.quality >= trial.quality
            and o.latency_ms <= trial.latency_ms
            and (o.quality, o.latency_ms) != (trial.quality, trial.latency_ms)
            for o in able
        )
        assert ((trial.quality, trial.latency_ms) in values) is not beaten
    assert [t.quality for t in front] == sorted((t.quality for t in front), reverse=True)


def test_hypervolume_goes_by_epoch_and_by_the_accuracy_that_is_asked_for() -> None:
    trials = [
        TRIAL,
        replace(TRIAL, epoch=1, accuracy=0.9, expected=0.7, quality=-5.0),
        replace(TRIAL, epoch=1, accuracy=1.0, latency_ms=1.0, feasible=False),
        replace(TRIAL, epoch=1, accuracy=1.0, latency_ms=1.0, kind="user"),
        replace(TRIAL, epoch=None, accuracy=1.0, latency_ms=1.0),
    ]
    reference = (0.1, 20.0)
    hard = [hypervolume([(accuracy, 10.0)], reference) for accuracy in (0.6, 0.9)]
    smooth = [hypervolume([(accuracy, 10.0)], reference) for accuracy in (0.55, 0.7)]
    assert hypervolume_by_epoch(trials, 3, reference, "hard") == [*hard, 0.0]
    assert hypervolume_by_epoch(trials, 3, reference, "expected") == [*smooth, 0.0]


def test_latencies_of_all_epochs_follow_the_latest_correction() -> None:
    trials = [
        replace(TRIAL, number=0, epoch=0, latency_ms=50.0),
        replace(TRIAL, number=1, epoch=1, latency_ms=60.0),
        replace(TRIAL, number=2, epoch=2, latency_ms=70.0),
        replace(TRIAL, number=3, epoch=None, latency_ms=70.0),
        replace(TRIAL, number=4, epoch=0, latency_ms=nan),
    ]
    corrected = with_latest_correction(trials, [1.0, 0.8, 0.6], dense_ms=100.0)
    assert [trial.latency_ms for trial in corrected[:4]] == pytest.approx([70, 70, 70, 70])
    assert isnan(corrected[4].latency_ms)
    assert [trial.number for trial in corrected] == [0, 1, 2, 3, 4]
    assert with_latest_correction(trials[:4], [1.0, 1.0, 1.0], 100.0) == trials[:4]


def test_what_the_latest_correction_moves_out_of_the_budget_is_on_no_front() -> None:
    trials = [
        replace(TRIAL, number=number, latency_ms=latency_ms, quality=latency_ms)
        for number, latency_ms in enumerate((40.0, 50.0, 50.1, nan))
    ]
    by_speed = within_limit(trials, 100.0, None, 2.0)
    assert [trial.feasible for trial in by_speed] == [True, True, False, True]
    assert [trial.number for trial in front_of(by_speed)] == [1, 0]
    assert within_limit(trials, 100.0, 50.0, None) == by_speed
    assert within_limit(trials, 100.0, None, None) == trials
    assert within_limit(trials, 100.0, 30.0, None) == trials  # nothing is so fast
