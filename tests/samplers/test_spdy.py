"""SPDY: a Gaussian process searches for weights of the curves of a programme."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from effllava_optuna.samplers import EpochSpdySampler, Seed, Variation, effective_trials
from effllava_optuna.samplers._level_grid import LevelGrid
from effllava_optuna.samplers._proposals._history import VECTOR, ProposedGenome
from effllava_optuna.samplers._spdy import SpdyStrategy
from tests.samplers.toy import (
    DIRECTIONS,
    ToyProgramme,
    ToySpace,
    digest,
    measure,
    objective_of,
    suggest,
    toy_space,
)

GENES, BUDGET, POPULATION = 6, 48, 6
PROGRAMME = ToyProgramme(GENES, BUDGET)
PLAIN = [PROGRAMME.solve([0.0] * 3, position) for position in (0.0, 0.2, 0.5)]
SPACE = toy_space(
    GENES,
    budget=float(BUDGET),
    programme=PROGRAMME,
    seeds=tuple(Seed(params, "allocated") for params in PLAIN),
)
STRATEGY = SpdyStrategy(3, POPULATION, Variation(), None)


def study_of(space: ToySpace = SPACE, **options: Any) -> optuna.Study:
    sampler = EpochSpdySampler(lambda _: space, **{"population_size": POPULATION, **options})
    return optuna.create_study(directions=DIRECTIONS, sampler=sampler)


@pytest.fixture(scope="module")
def searched() -> optuna.Study:
    study = study_of()
    study.optimize(objective_of(SPACE), n_trials=24)
    return study


def kinds(study: optuna.Study) -> list[str]:
    return [trial.user_attrs["kind"] for trial in study.trials]


def generation(
    number: int, past: Sequence[FrozenTrial], space: ToySpace = SPACE
) -> list[ProposedGenome]:
    return STRATEGY.generation(space, number, past, DIRECTIONS)


def test_the_first_proposals_are_those_of_plain_dynamic_programming(
    searched: optuna.Study,
) -> None:
    assert kinds(searched) == ["allocated"] * 3 + ["weighted"] * 21
    assert [trial.params for trial in searched.trials[:3]] == PLAIN
    front = [trial.params for trial in searched.best_trials]
    assert all(
        params in front or any(_dominates(trial, params) for trial in searched.best_trials)
        for params in PLAIN
    )


def _dominates(trial: FrozenTrial, params: dict[str, int]) -> bool:
    quality, size = measure(params)
    return bool(trial.values[0] >= quality and trial.values[1] <= size)


def test_a_genome_is_what_the_programme_computes_from_the_stored_vector(
    searched: optuna.Study,
) -> None:
    for trial in searched.trials[3:]:
        *coefficients, position = trial.user_attrs[VECTOR]
        assert PROGRAMME.solve(coefficients, position) == trial.params
        assert max(map(abs, coefficients)) <= math.log(10)
        assert 0 <= position <= 1
    assert all(VECTOR not in trial.user_attrs for trial in searched.trials[:3])


def test_every_genome_is_new_and_within_the_budget(searched: optuna.Study) -> None:
    assert len({tuple(trial.params.values()) for trial in searched.trials}) == 24
    assert max(trial.constraints["0"] for trial in searched.trials) <= 0
    sizes = [trial.values[1] for trial in searched.trials]
    assert min(sizes) < 0.5 * BUDGET < 0.8 * BUDGET < max(sizes)


def test_an_interrupted_search_is_the_same_search(searched: optuna.Study) -> None:
    study = study_of()
    for n_trials in (4, 9, 11):
        study.sampler = study_of().sampler
        study.optimize(objective_of(SPACE), n_trials=n_trials)
    assert digest(study) == digest(searched)


def test_proposals_do_not_depend_on_the_order_in_which_trials_ended(
    searched: optuna.Study,
) -> None:
    """Workers that end the trials of a generation backwards, and a queue read by another one."""
    study = study_of()
    for _ in range(3):
        asked = [study.ask() for _ in range(POPULATION)]
        values = [measure(suggest(trial, SPACE)) for trial in asked]
        study.sampler = study_of().sampler
        for trial, value in reversed([*zip(asked, values, strict=True)]):
            study.tell(trial, value)
    effective = [*effective_trials(searched.trials).values()][:18]
    assert [trial.params for trial in study.trials] == [trial.params for trial in effective]
    proposals = generation(3, effective)
    assert proposals == generation(3, [renumbered(trial) for trial in effective])
    assert proposals != SpdyStrategy(4, POPULATION, Variation(), None).generation(
        SPACE, 3, effective, DIRECTIONS
    )


def renumbered(trial: FrozenTrial) -> FrozenTrial:
    copied = copy.deepcopy(trial)
    copied.number = 999 - trial.number
    return copied


def test_the_process_learns_which_weights_are_good() -> None:
    """Later genes and pairs count more than the programme knows; it finds better policies."""
    space = replace(SPACE, seeds=SPACE.seeds[:1])

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        params = suggest(trial, space)
        widths = [params[name] for name in sorted(params)]
        value = sum(5.0 * width / (width + 4) for width in widths[:2]) + measure(params)[0] / 10
        return value, float(sum(widths))

    study = study_of(space, population_size=8)
    study.optimize(objective, n_trials=32)
    plain, quality = study.trials[0], [trial.values[0] for trial in study.trials]
    assert max(quality) > plain.values[0] + 0.5
    last = np.mean([trial.values[0] - trial.values[1] / 10 for trial in study.trials[24:]])
    first = np.mean([trial.values[0] - trial.values[1] / 10 for trial in study.trials[1:8]])
    assert last > first


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.PRUNED])
def test_a_search_without_any_result_goes_on(state: TrialState) -> None:
    study = study_of()

    def ends(trial: optuna.Trial) -> tuple[float, float]:
        suggest(trial, SPACE)
        raise RuntimeError if state == TrialState.FAIL else optuna.TrialPruned

    study.optimize(ends, n_trials=30, catch=(RuntimeError,))
    assert {trial.state for trial in study.trials[:30]} == {state}
    effective = effective_trials(study.trials[:30])
    assert len({tuple(t.params.values()) for t in effective.values()}) == len(effective)
    # A failed slot is tried once more, with the vector of its first attempt.
    vectors: dict[tuple[int, int], Any] = {}
    for trial in study.trials[:30]:
        slot = (trial.user_attrs["generation"], trial.user_attrs["index"])
        assert vectors.setdefault(slot, trial.user_attrs.get(VECTOR)) == (
            trial.user_attrs.get(VECTOR)
        )


def test_a_slot_is_tried_again_without_another_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proposal may take seconds."""
    study, asked = study_of(), []

    def generation(strategy: SpdyStrategy, view: ToySpace, number: int, *rest: Any) -> Any:
        asked.append(number)
        return proposed(strategy, view, number, *rest)

    proposed = SpdyStrategy.generation
    monkeypatch.setattr(SpdyStrategy, "generation", generation)

    def failing(trial: optuna.Trial) -> tuple[float, float]:
        params = suggest(trial, SPACE)
        if trial.user_attrs["index"] == 1 and trial.user_attrs["attempt"] == 0:
            raise RuntimeError("out of memory")
        return measure(params)

    study.optimize(failing, n_trials=14, catch=(RuntimeError,))
    assert asked == [0, 1]
    assert {slot.generation for slot in effective_trials(study.trials)} == {0, 1}
    first, *_, last = (trial for trial in study.trials if trial.user_attrs["index"] == 1)
    assert first.state == TrialState.FAIL
    assert last.state == TrialState.COMPLETE


def test_values_that_are_not_finite_do_not_count() -> None:
    study = study_of()

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        quality, size = measure(suggest(trial, SPACE))
        return (-math.inf if trial.user_attrs["index"] % 2 else quality), size

    study.optimize(objective, n_trials=18)
    assert kinds(study)[3:] == ["weighted"] * 15


def test_few_genes_have_few_genomes_which_are_mutated_or_repeated() -> None:
    """One gene with seven widths: the programme has no more genomes than that."""
    space = toy_space(1, budget=16.0, programme=ToyProgramme(1, 16))
    study = study_of(space)
    study.optimize(objective_of(space), n_trials=12)
    assert {trial.params["g0"] for trial in study.trials} == {1, 2, 4, 6, 8, 12, 16}
    assert {"weighted"} < set(kinds(study)) <= {"weighted", "child"}


def test_an_epoch_without_a_programme_is_searched_with_children() -> None:
    space = replace(SPACE, programme=lambda trials: None)
    study = study_of(space)
    study.optimize(objective_of(space), n_trials=12)
    assert kinds(study) == ["allocated"] * 3 + ["child"] * 9


def test_a_space_needs_no_programme() -> None:
    view: Any = SimpleNamespace(
        **{
            name: getattr(SPACE, name)
            for name in ("epoch", "distributions", "levels", "costs", "budget", "stamp")
        },
        seeds=(), allocation=None, describe=SPACE.describe,
    )  # fmt: skip
    sampler = EpochSpdySampler(lambda _: view, population_size=POPULATION)
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    study.optimize(objective_of(SPACE), n_trials=12)
    assert kinds(study) == ["random"] * 6 + ["child"] * 6


def test_a_programme_of_measured_curves_gets_the_seeds_when_all_are_measured() -> None:
    asked: list[int] = []

    def programme(trials: Sequence[FrozenTrial]) -> ToyProgramme | None:
        asked.append(len(trials))
        return PROGRAMME if trials else None

    curve = [Seed(dict.fromkeys(SPACE.levels, 16) | {"g0": w}, "curve") for w in range(1, 9)]
    space = replace(
        SPACE,
        programme=programme,
        seeds=tuple(curve),
        allocation=lambda trials: [Seed(params, "allocated") for params in PLAIN],
    )
    study = study_of(space)  # fmt: skip
    study.optimize(objective_of(space), n_trials=24)
    assert asked == [0, 0, 12, 12]
    assert kinds(study)[:8] == ["curve"] * 8
    assert kinds(study)[12:] == ["allocated"] * 3 + ["weighted"] * 9


def test_the_vector_of_an_allocated_genome_has_the_position_of_its_cost(
    searched: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[FrozenTrial] = []
    monkeypatch.setattr(optuna.Study, "add_trial", lambda study, trial: added.append(trial))
    generation(2, [*effective_trials(searched.trials).values()][:12])
    plain = [[*trial.params.values()] for trial in added[:3]]
    assert [vector[:-1] for vector in plain] == [[0.0] * 3] * 3
    assert [vector[-1] for vector in plain] == [PROGRAMME.position(params) for params in PLAIN]
    weighted = [trial.user_attrs[VECTOR] for trial in searched.trials[3:12]]
    assert [[*trial.params.values()] for trial in added[3:]] == weighted
    grid = LevelGrid.of(SPACE)
    losses = [measure(grid.params(grid.genome(trial.params))) for trial in searched.trials[:12]]
    assert [trial.values for trial in added] == [[-quality, size] for quality, size in losses]


def test_an_allocated_genome_that_the_programme_does_not_compute_has_no_vector(
    searched: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the best genome of a number of image tokens, if another number is better."""
    added: list[FrozenTrial] = []
    monkeypatch.setattr(optuna.Study, "add_trial", lambda study, trial: added.append(trial))
    past = copy.deepcopy([*effective_trials(searched.trials).values()][:6])
    other = PLAIN[1] | {"g0": PLAIN[1]["g5"], "g5": PLAIN[1]["g0"]}
    assert other != PLAIN[1]
    assert sum(other.values()) == sum(PLAIN[1].values())
    past[1].params = other
    generation(1, past)
    vectors = [[*trial.params.values()] for trial in added]
    positions = [PROGRAMME.position(params) for params in (PLAIN[0], PLAIN[2])]
    assert vectors[:2] == [[0.0] * 3 + [position] for position in positions]
    assert len(vectors) == 5
