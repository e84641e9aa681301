"""The search beats random search on a problem with a known front."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import optuna

from effllava_optuna.samplers._proposals._generation_strategy import random_stream
from tests.samplers.toy import DIRECTIONS, measure, objective_of, sampler_of, toy_space

SPACE = toy_space(genes=12)
BUDGET = 200  # trials
CORNER = (0.0, 200.0)  # quality and size of the reference point


def hypervolume(values: Iterable[tuple[float, float]]) -> float:
    """Add up the rectangles between the front and the corner (quality up, size down)."""
    area, best = 0.0, CORNER[0]
    for size, quality in sorted((size, -quality) for quality, size in values if size < CORNER[1]):
        if -quality > best:
            area += (-quality - best) * (CORNER[1] - size)
            best = -quality
    return area


def searched(seed: int) -> float:
    study = optuna.create_study(
        directions=DIRECTIONS, sampler=sampler_of(SPACE, population_size=20, seed=seed)
    )
    study.optimize(objective_of(SPACE), n_trials=BUDGET)
    return hypervolume((trial.values[0], trial.values[1]) for trial in study.trials)


def drawn(seed: int) -> float:
    rng = random_stream(seed, "random search")
    rows = [
        {name: int(rng.choice(levels)) for name, levels in SPACE.levels.items()}
        for _ in range(BUDGET)
    ]
    return hypervolume(map(measure, rows))


def test_hypervolume_counts_the_front_only() -> None:
    assert hypervolume([(1.0, 100.0), (3.0, 150.0), (2.0, 160.0)]) == 1 * 100 + 2 * 50


def test_the_search_beats_random_search_by_a_clear_margin() -> None:
    search = [searched(seed) for seed in range(3)]
    random = [drawn(seed) for seed in range(3)]
    assert min(search) > 1.1 * np.mean(random)
    assert np.mean(search) - np.mean(random) > 3 * np.std(random)
