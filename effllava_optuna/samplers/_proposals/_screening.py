"""Screening: a model of what was measured decides which of many candidates are measured.

Evaluations cost more than predictions. So a generation is chosen from a pool of candidates by a
Gaussian process on the logarithms of the genes, relative to their dense values.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import fmin_l_bfgs_b
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sklearn.gaussian_process import GaussianProcessRegressor

    from effllava_optuna.samplers._level_grid import Genome, LevelGrid
    from effllava_optuna.samplers._proposals._generation_strategy import GenerationTask
    from effllava_optuna.samplers._proposals._selection import FloatArray, IntArray

_FEWEST_TRIALS = 8  # that a model is fitted to
_MOST_TRIALS = 400  # its time grows with their cube, its memory with their square
_MOST_STEPS = 50  # of the fit of its length scales
_SMALLEST = 0.5  # stands for the gene value 0, which has no logarithm


@dataclass(frozen=True, slots=True)
class Screening:
    """Parameters of the screening.

    Each slot takes the candidate with the least ``mean - b * deviation`` of the predicted loss,
    where ``b`` is drawn from an exponential distribution. Some slots look only at candidates
    whose known objective is within a random limit, so that the whole front is improved.

    Args:
        candidates: Candidates for each slot, at least 1.
        exploration: Mean of ``b``, not negative.
        front_share: Share of the slots with a random limit, in [0, 1].

    Raises:
        ValueError: A number is out of its range.
    """

    candidates: int = 60
    exploration: float = 0.7
    front_share: float = 0.5

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, not {self.candidates}.")
        if not self.exploration >= 0:
            raise ValueError(f"exploration must not be negative, not {self.exploration}.")
        if not 0 <= self.front_share <= 1:
            raise ValueError(f"front_share must be in [0, 1], not {self.front_share}.")

    def choose(
        self,
        task: GenerationTask,
        pool: Sequence[Genome],
        streams: Sequence[np.random.Generator],
    ) -> list[int] | None:
        """Choose a candidate for each slot.

        Args:
            task: The generation that is proposed.
            pool: The candidates, all different.
            streams: The random stream of each slot.

        Returns:
            Positions in the pool, fewer than slots if the pool is smaller; None if too little was
            measured to fit a model.

        Raises:
            ValueError: Not exactly one objective has to be measured.
        """
        names, params = task.grid.names, [task.grid.params(genome) for genome in pool]
        values = [task.view.known_values(one) for one in params]
        unknown = [index for index, value in enumerate(values[0]) if value is None] if pool else []
        if len(unknown) != 1:
            raise ValueError(
                f"Screening needs exactly one objective that has to be measured, not {unknown}."
            )
        points, losses = _measured(task, unknown[0])
        if len(points) < _FEWEST_TRIALS:
            return None
        others = [index for index in range(len(values[0])) if index != unknown[0]]
        known = np.array([[one[index] for index in others] for one in values], dtype=np.float64)
        known *= task.history.signs[others]
        with threadpool_limits(1):  # the last bits of a result depend on the number of threads
            model = _fit(points, losses)
            mean, deviation = model.predict(_features(task.grid, params, names), return_std=True)
        return self._select(mean, deviation, known, streams)

    def _select(
        self,
        mean: FloatArray,
        deviation: FloatArray,
        known: FloatArray,
        streams: Sequence[np.random.Generator],
    ) -> list[int]:
        free = np.ones(len(mean), dtype=bool)
        chosen: list[int] = []
        for stream in streams:
            if not free.any():
                break
            optimism, draw, position = stream.exponential(), stream.random(), stream.random()
            scores = mean - self.exploration * optimism * deviation
            eligible = free
            if draw < self.front_share and known.shape[1]:
                low, high = known.min(0), known.max(0)
                within = (known <= low + position * (high - low)).all(1)
                eligible = free & within if (free & within).any() else free
            best = int(np.argmin(np.where(eligible, scores, math.inf)))
            free[best] = False
            chosen.append(best)
        return chosen


def _measured(task: GenerationTask, objective: int) -> tuple[FloatArray, FloatArray]:
    """Return the features and the loss of the trials that a model is fitted to, the best first."""
    names, history = task.grid.names, task.history
    params: list[Mapping[str, float]] = [task.grid.params(genome) for genome in history.genomes]
    losses = [float(loss) for loss in history.losses[:, objective]]
    for trial in task.comparable:
        if set(names) <= set(trial.params):
            params.append(trial.params)
            losses.append(float(history.signs[objective]) * trial.values[objective])
    finite = [index for index, loss in enumerate(losses) if math.isfinite(loss)]
    # Not in the order of the trials: workers that are killed change it, and the last bits with it.
    finite.sort(key=lambda index: (losses[index], [params[index][name] for name in names]))
    finite = finite[:_MOST_TRIALS]
    points = _features(task.grid, [params[index] for index in finite], names)
    return points, np.array([losses[index] for index in finite])


def _features(
    grid: LevelGrid, params: Sequence[Mapping[str, float]], names: Sequence[str]
) -> FloatArray:
    """Return the logarithms of the genes, relative to their dense values."""
    dense = np.array([levels[-1] for levels in grid.levels], dtype=np.float64)
    widths = np.array([[one[name] for name in names] for one in params], dtype=np.float64)
    return np.asarray(np.log(np.maximum(widths.reshape(-1, len(names)), _SMALLEST) / dense))


def _fit(points: FloatArray, losses: FloatArray) -> GaussianProcessRegressor:
    """Fit a Gaussian process; the losses are standardised."""
    # These imports take a second, which only the process that proposes a generation should wait.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    n_genes = points.shape[1]
    # Distances grow with the root of the number of genes (Hvarfner et al. 2024, arXiv:2402.02229).
    scale = 0.45 * math.sqrt(n_genes)
    kernel = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(
        length_scale=np.full(n_genes, scale),
        length_scale_bounds=(0.1 * scale, 20 * scale),
        nu=2.5,
    ) + WhiteKernel(1e-2, (1e-4, 1.0))
    model = GaussianProcessRegressor(kernel, optimizer=_minimise, random_state=0)
    spread = float(losses.std()) or 1.0
    with warnings.catch_warnings():  # a length scale at its upper bound: the gene has no effect
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(points, (losses - losses.mean()) / spread)
    return model


def _minimise(
    objective: Callable[..., Any], start: FloatArray, bounds: IntArray
) -> tuple[FloatArray, float]:
    """Minimise the negative log-likelihood in a limited number of steps."""
    best, value, _ = fmin_l_bfgs_b(objective, start, bounds=bounds, maxiter=_MOST_STEPS)
    return best, float(value)
