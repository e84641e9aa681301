"""The quality of finalists, smoothed over the trials of their weight state."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest

from effllava_optuna.policy import Component, Kind, ModelStructure, log_width_ratios
from effllava_optuna.report import smoothed_qualities
from tests.report.study_samples import record

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.policy import TrialRecord

SMALL = ModelStructure(tuple(Component("language", layer, Kind.MLP, 8, 1) for layer in range(2)))
GRID = list(itertools.product(range(1, 9), repeat=2))


def smooth(widths: tuple[int, ...]) -> float:
    """Return a quality that falls with the square of the logarithm of the first width ratio."""
    return 0.9 - 0.05 * float(np.log(widths[0] / 8)) ** 2 + 0.02 * float(np.log(widths[1] / 8))


def trials(quality: Callable[[tuple[int, ...]], float]) -> list[TrialRecord]:
    return [
        record(SMALL, number, quality(widths), 20.0, widths=widths)
        for number, widths in enumerate(GRID)
    ]


def test_a_smooth_quality_is_reproduced() -> None:
    measured = trials(smooth)
    smoothed = smoothed_qualities(measured[10:13], measured, SMALL)
    assert list(smoothed) == [10, 11, 12]
    for trial in measured[10:13]:
        assert smoothed[trial.number] == pytest.approx(trial.quality, abs=1e-3)


def test_noise_is_averaged_over_similar_policies() -> None:
    rng = np.random.default_rng(0)
    noise = dict(zip(GRID, 0.02 * rng.standard_normal(len(GRID)), strict=True))
    measured = trials(lambda widths: smooth(widths) + noise[widths])
    smoothed = smoothed_qualities(measured, measured, SMALL)
    errors = np.array([smoothed[trial.number] for trial in measured], dtype=float)
    errors -= [smooth(trial.widths) for trial in measured]
    assert errors.std() < 0.5 * np.std(list(noise.values()))


def test_a_lucky_trial_is_ranked_below_the_best_policy() -> None:
    lucky = GRID.index((5, 5))
    measured = trials(lambda widths: smooth(widths) + (0.06 if widths == (5, 5) else 0.0))
    best = GRID.index((8, 8))
    assert measured[lucky].quality > measured[best].quality
    smoothed = smoothed_qualities([measured[lucky], measured[best]], measured, SMALL)
    assert (smoothed[lucky] or 0.0) < (smoothed[best] or 0.0)


def test_the_same_records_have_the_same_smoothed_qualities() -> None:
    measured = trials(smooth)
    once = smoothed_qualities(measured[:3], measured, SMALL)
    assert smoothed_qualities(measured[:3], measured[::-1], SMALL) == once


def test_only_eligible_trials_of_the_same_weight_state_are_used() -> None:
    measured = trials(smooth)
    misleading = [
        record(SMALL, 100, 0.1, 20.0, widths=(4, 4), weight_state="c"),
        record(SMALL, 101, 0.1, 20.0, widths=(4, 4), feasible=False),
        record(SMALL, 102, 0.1, 20.0, widths=(4, 4), kind="user"),
    ]
    finalist = measured[GRID.index((4, 4))]
    once = smoothed_qualities([finalist], measured, SMALL)
    assert smoothed_qualities([finalist], [*measured, *misleading], SMALL) == once
    # The other weight state has one trial only.
    assert smoothed_qualities(misleading[:1], [*measured, *misleading], SMALL) == {100: None}


def test_many_trials_of_many_components_are_fitted_to_the_best_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = trials(smooth)
    best = sorted(measured, key=lambda trial: (-trial.quality, trial.number))[:20]
    monkeypatch.setattr("effllava_optuna.report.smoothed_quality._MOST_TRIALS", 20)
    limited = smoothed_qualities(best[:2], measured, SMALL)
    monkeypatch.undo()
    assert smoothed_qualities(best[:2], best, SMALL) == limited


def test_policies_of_one_network_have_the_same_features() -> None:
    structure = ModelStructure(
        (
            Component("language", 0, Kind.BLOCK, 1, 10, floor=0),
            Component("language", 0, Kind.MLP, 8, 10),
            Component("language", 1, Kind.MLP, 8, 10),
        )
    )
    removed = log_width_ratios(structure, (0, 8, 4))
    np.testing.assert_array_equal(log_width_ratios(structure, (0, 2, 4)), removed)
    assert np.isfinite(removed).all()
    assert not np.array_equal(log_width_ratios(structure, (1, 8, 4)), removed)
