"""The quality of finalists, smoothed by a regression over all trials of their weight state."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from effllava_optuna.policy import log_width_ratios

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.policy import ModelStructure, TrialRecord

_FEWEST_TRIALS = 8  # of a weight state; fewer determine no regression
_MOST_TRIALS = 200  # the time of a fit grows with their cube
_DIGITS = 6


def smoothed_qualities(
    finalists: Sequence[TrialRecord], trials: Sequence[TrialRecord], structure: ModelStructure
) -> dict[int, float | None]:
    """Predict the quality of finalists from all eligible trials of their weight states.

    Within a weight state, quality is a function of the log width ratios. A Gaussian process with a
    Matern 5/2 kernel, one length scale for each component, and independent noise is fitted to it
    by maximum likelihood (Rasmussen and Williams 2006); its posterior mean at a finalist averages
    over similar policies. Of many trials, those of the best quality are used.

    Args:
        finalists: Trials with quality.
        trials: The trials of the search.
        structure: The structure of the model.

    Returns:
        The posterior mean by number of the finalist; None if its weight state has too few trials.
    """
    smoothed: dict[int, float | None] = {}
    for weight_state in dict.fromkeys(trial.weight_state for trial in finalists):
        members = [
            trial for trial in trials if trial.eligible and trial.weight_state == weight_state
        ]
        targets = [trial for trial in finalists if trial.weight_state == weight_state]
        means: Sequence[float | None] = [None] * len(targets)
        if len(members) >= _FEWEST_TRIALS:
            means = _posterior_means(targets, members, structure)
        smoothed |= dict(zip((trial.number for trial in targets), means, strict=True))
    return smoothed


def _posterior_means(
    targets: Sequence[TrialRecord], members: Sequence[TrialRecord], structure: ModelStructure
) -> list[float]:
    """Fit a Gaussian process to ``members``, and return its mean at ``targets``."""
    # Imported here because scikit-learn is slow to import.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    fitted = sorted(members, key=lambda trial: (-trial.quality, trial.number))[:_MOST_TRIALS]
    features = np.array([log_width_ratios(structure, trial.widths) for trial in fitted])
    amplitude = ConstantKernel(1.0, (1e-2, 1e3))
    scales = Matern(np.full(features.shape[1], 1.5), (0.2, 100.0), nu=2.5)
    kernel = amplitude * scales + WhiteKernel(1e-2, (1e-4, 1.0))
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        # A component without influence has a length scale at its bound.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(features, np.array([trial.quality for trial in fitted]))
    points = np.array([log_width_ratios(structure, trial.widths) for trial in targets])
    return [round(float(mean), _DIGITS) for mean in process.predict(points)]
