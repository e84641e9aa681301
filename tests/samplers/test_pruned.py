"""A pruned trial finishes its slot, is not repeated, and ranks behind every complete trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from effllava_optuna.samplers import (
    CmaOptions,
    EpochCMASampler,
    EpochNSGAIISampler,
    EpochSampler,
    EpochSpdySampler,
    EpochStockSampler,
    effective_trials,
    epoch_finished,
)
from effllava_optuna.samplers._cma_es._cma_sampler import CMAStrategy
from effllava_optuna.samplers._level_grid import LevelGrid
from effllava_optuna.samplers._proposals._generation_strategy import GenerationTask
from effllava_optuna.samplers._proposals._history import History
from effllava_optuna.samplers._proposals._operators import Variation
from effllava_optuna.samplers._stock import _measured
from tests.samplers.toy import DIRECTIONS, ToyProgramme, digest, measure, suggest, toy_space

SPACE = toy_space(genes=4, budget=40.0)
WEIGHTED = toy_space(genes=4, budget=40.0, programme=ToyProgramme(4, 40))
SIZES: Any = {"population_size": 6}
MAKE: dict[str, Callable[[], EpochSampler]] = {
    "nsga2": lambda: EpochNSGAIISampler(lambda _: SPACE, **SIZES),
    "cma": lambda: EpochCMASampler(lambda _: SPACE, **SIZES),
    "sep-cma": lambda: EpochCMASampler(lambda _: SPACE, options=CmaOptions(limit=20.0), **SIZES),
    "stock-nsga2": lambda: EpochStockSampler(lambda _: SPACE, "nsga2", **SIZES),
    "tpe": lambda: EpochStockSampler(lambda _: SPACE, "tpe", **SIZES),
    "random": lambda: EpochStockSampler(lambda _: SPACE, "random", **SIZES),
    "spdy": lambda: EpochSpdySampler(lambda _: WEIGHTED, **SIZES),
}
EVERY = pytest.mark.parametrize("name", MAKE)


def objective_that_stops(stops: Callable[[dict[str, Any]], bool]) -> Any:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        params = suggest(trial, SPACE)
        if stops(trial.user_attrs):
            raise optuna.TrialPruned
        return measure(params)

    return objective


def run(
    name: str, stops: Callable[[dict[str, Any]], bool], *parts: int, trials: int = 24
) -> optuna.Study:
    study = optuna.create_study(directions=DIRECTIONS, sampler=MAKE[name]())
    for n_trials in parts or (trials,):
        study.sampler = MAKE[name]()
        study.optimize(objective_that_stops(stops), n_trials=n_trials)
    return study


def some(attrs: dict[str, Any]) -> bool:
    return bool(attrs["generation"] and attrs["index"] % 2)


def genomes(trials: list[FrozenTrial]) -> set[tuple[int, ...]]:
    return {tuple(trial.params[name] for name in sorted(trial.params)) for trial in trials}


@EVERY
def test_a_pruned_trial_finishes_its_slot_and_its_genome_is_not_proposed_again(name: str) -> None:
    study = run(name, some)
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.PRUNED) == 9
    assert states.count(TrialState.COMPLETE) == 15
    assert epoch_finished(study.trials, 0, population_size=6, generations=4)
    assert len(genomes(study.trials)) == 24


@EVERY
def test_a_resumed_search_with_pruned_trials_is_the_same_search(name: str) -> None:
    assert digest(run(name, some, 5, 9, 10)) == digest(run(name, some))


@EVERY
@pytest.mark.parametrize("generation", [0, 1])
def test_a_completely_pruned_generation_does_not_break_the_next(
    name: str, generation: int
) -> None:
    study = run(name, lambda attrs: attrs["generation"] == generation)
    last = [trial for trial in study.trials if trial.user_attrs["generation"] == 3]
    assert [trial.state for trial in last] == [TrialState.COMPLETE] * 6
    assert len(genomes(study.trials)) == 24


def history_of(study: optuna.Study) -> History:
    return History.of(
        LevelGrid.of(SPACE), list(effective_trials(study.trials).values()), DIRECTIONS
    )


def test_a_pruned_trial_is_not_a_parent() -> None:
    """It has no losses: the elite is selected among complete trials."""
    study = run("nsga2", some)
    history, grid = history_of(study), LevelGrid.of(SPACE)
    rows, elite = history.elite(24)
    parents = {history.genomes[rows[member]].tobytes() for member in elite.members}
    pruned = {
        grid.genome(trial.params).tobytes()
        for trial in study.trials
        if trial.state == TrialState.PRUNED
    }
    assert parents.isdisjoint(pruned)
    assert pruned == {genome.tobytes() for genome in history.pruned.values()}
    assert len(history.before(2).pruned) == 3
    assert history.before(2).digest != history.before(3).digest


@pytest.mark.parametrize("limit", [None, 20.0])
def test_cma_gets_pruned_trials_with_their_genome_and_a_penalty(
    limit: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = run("cma" if limit is None else "sep-cma", some)
    history = history_of(study)
    strategy = CMAStrategy(0, 6, Variation(), None, CmaOptions(limit=limit))
    grid = LevelGrid.of(SPACE)
    optimiser = strategy.replay(GenerationTask(SPACE, grid, 1, 1, history))
    assert optimiser is not None
    received: list[Any] = []
    tell = optimiser.tell

    def recorded_tell(measured: Any) -> None:
        received.append(measured)
        tell(measured)

    monkeypatch.setattr(optimiser, "tell", recorded_tell)
    strategy.replay(GenerationTask(SPACE, grid, 4, 1, history))
    assert len(received) == 3
    for generation, measured in enumerate(received, start=1):
        known = history.before(generation + 1)
        pruned = {s.index: g for s, g in known.pruned.items() if s.generation == generation}
        for index in set(pruned) & set(range(len(measured))):
            genome, losses = measured[index]
            assert genome.tolist() == pruned[index].tolist()
            assert (losses > known.losses.max(axis=0)).all()


def test_stock_samplers_see_pruned_trials_behind_all_complete_ones() -> None:
    history = history_of(run("tpe", some))
    measured = list(_measured(history, LevelGrid.of(SPACE)))
    assert len(measured) == 24
    worst = history.losses.max(axis=0)
    assert all((losses > worst).all() for _, _, losses, _ in measured[15:])
    assert all(penalty == 0 for *_, penalty in measured)
