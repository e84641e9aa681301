from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from effllava_optuna.samplers import EpochStockSampler
from effllava_optuna.samplers._stock import Stock
from tests.samplers.toy import DIRECTIONS, digest, measure, objective_of, suggest, toy_space

SPACE = toy_space(genes=6, budget=48.0)
NAMES: tuple[Stock, ...] = ("nsga2", "tpe", "random")


def study_of(name: Stock, **options: Any) -> optuna.Study:
    sampler = EpochStockSampler(lambda _: SPACE, name, **{"population_size": 6, **options})
    return optuna.create_study(directions=DIRECTIONS, sampler=sampler)


@pytest.mark.parametrize("name", NAMES)
def test_genomes_are_new_admissible_within_the_budget_and_reproducible(name: Stock) -> None:
    whole, parts = study_of(name), study_of(name)
    whole.optimize(objective_of(SPACE), n_trials=24)
    for n_trials in (5, 12, 7):
        parts.sampler = study_of(name).sampler
        parts.optimize(objective_of(SPACE), n_trials=n_trials)
    assert digest(whole) == digest(parts)
    assert [t.user_attrs["kind"] for t in whole.trials] == ["random"] * 6 + [name] * 18
    assert len({tuple(trial.params.values()) for trial in whole.trials}) == 24
    for trial in whole.trials:
        assert sum(trial.params.values()) <= 48
        assert all(width in SPACE.levels[gene] for gene, width in trial.params.items())


def test_stock_nsga2_takes_parents_from_earlier_generations() -> None:
    """Its children share genes with the front; without parents they would be drawn uniformly."""
    study = study_of("nsga2", population_size=12)
    study.optimize(objective_of(SPACE), n_trials=60)
    rows = np.array([list(trial.params.values()) for trial in study.trials])
    shared = [(row == rows[:48]).mean(axis=1).max() for row in rows[48:]]
    rng = np.random.default_rng(0)
    drawn = rng.choice(SPACE.levels["g0"], size=(12, 6))
    by_chance = [(row == rows[:48]).mean(axis=1).max() for row in drawn]
    assert np.mean(shared) > np.mean(by_chance) + 0.1


@pytest.mark.parametrize("name", NAMES)
def test_failures_do_not_stop_the_search(name: Stock) -> None:
    study = study_of(name)

    def failing(trial: optuna.Trial) -> tuple[float, float]:
        params = suggest(trial, SPACE)
        if trial.user_attrs["index"] == 1:
            raise RuntimeError("out of memory")
        return measure(params)

    study.optimize(failing, n_trials=28, catch=(RuntimeError,))
    assert sum(trial.state == TrialState.COMPLETE for trial in study.trials) == 20
    assert study.trials[-1].user_attrs["generation"] == 3


def test_an_unknown_sampler_is_refused() -> None:
    name: Any = "cma"
    with pytest.raises(
        ValueError, match="must be one of nsga2, tpe, random or a function, not 'cma'"
    ):
        EpochStockSampler(None, name)
