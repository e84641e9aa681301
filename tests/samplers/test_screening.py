"""A model of what was measured chooses which candidates are measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from effllava_optuna.samplers import (
    EpochCMASampler,
    EpochNSGAIISampler,
    Screening,
    Seed,
    Variation,
)
from effllava_optuna.samplers._level_grid import Genome, LevelGrid
from effllava_optuna.samplers._proposals._generation_strategy import (
    GenerationTask,
    NSGAIIStrategy,
    random_stream,
)
from effllava_optuna.samplers._proposals._history import History
from effllava_optuna.samplers._proposals._screening import _measured
from tests.samplers.toy import DIRECTIONS, ToySpace, digest, measure, objective_of, toy_space

SCREENED = NSGAIIStrategy(3, 12, Variation(), Screening())


def trial_of(space: ToySpace, genome: Genome, quality: float | None = None) -> FrozenTrial:
    params = LevelGrid.of(space).params(genome)
    values = measure(params)
    return create_trial(
        params=params,
        distributions=dict(space.distributions),
        values=(values[0] if quality is None else quality, values[1]),
        user_attrs={"epoch": 0, "generation": 0, "index": 0, "attempt": 0, **space.stamp},
    )


def task_of(
    space: ToySpace, trials: Sequence[FrozenTrial], comparable: Sequence[FrozenTrial] = ()
) -> GenerationTask:
    grid = LevelGrid.of(space)
    history = History.of(grid, trials, DIRECTIONS)
    return GenerationTask(space, grid, 1, 1, history, comparable)


def random_genomes(space: ToySpace, count: int, seed: int) -> list[Genome]:
    rng = np.random.default_rng(seed)
    tops = LevelGrid.of(space).top_levels
    genomes = {tuple(rng.integers(0, tops + 1).tolist()) for _ in range(count)}
    return [np.array(genome, dtype=np.int64) for genome in sorted(genomes)]


def streams(count: int) -> list[np.random.Generator]:
    return [random_stream(0, "screening", index) for index in range(count)]


def test_the_model_prefers_what_is_better() -> None:
    """Without exploration or limits the choice comes near the best candidates."""
    space = toy_space()
    measured = [trial_of(space, genome) for genome in random_genomes(space, 60, 0)]
    pool = random_genomes(space, 200, 1)
    chosen = Screening(exploration=0.0, front_share=0.0).choose(
        task_of(space, measured), pool, streams(10)
    )
    assert chosen is not None
    grid = LevelGrid.of(space)
    qualities = np.array([measure(grid.params(genome))[0] for genome in pool])
    ranks = (-qualities).argsort().argsort()
    assert len(set(chosen)) == 10
    assert ranks[chosen].mean() < 15  # of 200; the best possible mean is 4.5


def test_a_random_limit_reaches_the_narrow_end_of_the_front() -> None:
    space = toy_space()
    measured = [trial_of(space, genome) for genome in random_genomes(space, 60, 0)]
    pool = random_genomes(space, 200, 1)
    sizes = np.array([measure(LevelGrid.of(space).params(genome))[1] for genome in pool])
    whole = Screening(front_share=1.0).choose(task_of(space, measured), pool, streams(20))
    best = Screening(front_share=0.0).choose(task_of(space, measured), pool, streams(20))
    assert sizes[whole].min() < np.quantile(sizes, 0.1)
    assert sizes[whole].mean() < sizes[best].mean() - 5


def test_trials_of_other_epochs_count_as_far_as_they_are_comparable() -> None:
    space = toy_space()
    genomes = random_genomes(space, 60, 0)
    pool = random_genomes(space, 100, 1)
    here = [trial_of(space, genome) for genome in genomes]
    assert Screening().choose(task_of(space, []), pool, streams(5)) is None
    assert Screening().choose(task_of(space, [], here), pool, streams(5)) == Screening().choose(
        task_of(space, here), pool, streams(5)
    )


def test_the_order_of_the_trials_changes_no_bit_of_what_the_model_is_fitted_to() -> None:
    """Kills change the numbers of the trials of other epochs."""
    space = toy_space()
    trials = [trial_of(space, genome) for genome in random_genomes(space, 60, 0)]
    other = [trials[index] for index in np.random.default_rng(5).permutation(len(trials))]
    ((points, losses), (again, same)) = (
        _measured(task_of(space, [], order), 0) for order in (trials, other)
    )
    np.testing.assert_array_equal(points, again)
    np.testing.assert_array_equal(losses, same)


def test_the_model_is_fitted_to_a_limited_number_of_the_best_trials() -> None:
    space = toy_space(6)
    trials = [trial_of(space, genome) for genome in random_genomes(space, 700, 0)]
    points, losses = _measured(task_of(space, [], trials), 0)
    assert len(points) == len(losses) == 400
    assert losses.tolist() == sorted(-trial.values[0] for trial in trials)[:400]


def test_trials_without_a_finite_value_do_not_count() -> None:
    space = toy_space()
    measured = [trial_of(space, genome) for genome in random_genomes(space, 40, 0)]
    odd = trial_of(space, np.array([0, 1, 2, 3]), quality=-math.inf)
    pool = random_genomes(space, 100, 1)
    assert Screening().choose(task_of(space, [*measured, odd]), pool, streams(5)) == (
        Screening().choose(task_of(space, measured), pool, streams(5))
    )


def test_equal_values_of_all_trials_leave_a_choice() -> None:
    space = toy_space()
    flat = [trial_of(space, genome, quality=0.5) for genome in random_genomes(space, 30, 0)]
    pool = random_genomes(space, 6, 1)
    chosen = Screening().choose(task_of(space, flat), pool, streams(10))
    assert sorted(chosen or []) == list(range(len(pool)))


class BothMeasured(ToySpace):
    def known_values(self, params: Mapping[str, int]) -> tuple[float | None, ...]:
        return None, None


def test_an_objective_has_to_be_known() -> None:
    space = BothMeasured({f"g{i}": (1, 2, 4) for i in range(3)})
    with pytest.raises(ValueError, match="exactly one objective that has to be measured"):
        Screening().choose(task_of(space, []), random_genomes(space, 5, 0), streams(2))


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: Screening(candidates=0), "candidates must"),
        (lambda: Screening(exploration=-0.1), "exploration must"),
        (lambda: Screening(exploration=math.nan), "exploration must"),
        (lambda: Screening(front_share=1.1), "front_share must"),
    ],
)
def test_parameters_out_of_range_are_refused(
    create: Callable[[], Screening], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create()


@pytest.mark.parametrize("sampler", [EpochNSGAIISampler, EpochCMASampler])
def test_interrupted_searches_propose_the_same(
    sampler: type[EpochNSGAIISampler] | type[EpochCMASampler],
) -> None:
    space = toy_space(budget=40.0)

    def run(*parts: int) -> optuna.Study:
        study = optuna.create_study(directions=DIRECTIONS)
        for n_trials in parts:
            study.sampler = sampler(lambda _: space, population_size=8, screening=Screening())
            study.optimize(objective_of(space), n_trials=n_trials)
        return study

    whole = run(32)
    kinds = [trial.user_attrs["kind"] for trial in whole.trials]
    assert kinds[:8] == ["random"] * 8
    assert kinds.count("screened") >= 9
    assert digest(run(3, 9, 13, 7)) == digest(whole)
    violations = [trial.constraints["0"] for trial in whole.trials]
    assert max(violations) <= 0
    assert len({tuple(trial.params.values()) for trial in whole.trials}) == 32


def test_screening_finds_better_genomes_with_as_many_trials() -> None:
    space = toy_space(genes=8, budget=50.0)
    best = {}
    for screening in (None, Screening()):
        found = []
        for seed in range(3):
            study = optuna.create_study(directions=DIRECTIONS)
            study.sampler = EpochNSGAIISampler(
                lambda _: space, population_size=12, seed=seed, screening=screening
            )
            study.optimize(objective_of(space), n_trials=72)
            found.append(max(trial.values[0] for trial in study.trials))
        best[screening is not None] = np.mean(found)
    assert best[True] > best[False]


def test_seeds_fill_as_many_generations_as_they_need() -> None:
    seeds = tuple(
        Seed({f"g{i}": 16 for i in range(3)} | {"g3": width}, "curve") for width in range(1, 15)
    )
    space = toy_space(seeds=seeds)
    first = SCREENED.generation(space, 0, [], DIRECTIONS)
    second = SCREENED.generation(space, 1, [], DIRECTIONS)
    assert [proposal.params for proposal in (*first, *second)][:14] == [s.params for s in seeds]
    assert [proposal.kind for proposal in second] == ["curve"] * 2 + ["random"] * 10


def test_the_generation_after_the_seeds_begins_with_what_was_allocated() -> None:
    """Genomes that were measured as seeds are not measured again."""
    asked: list[list[int]] = []
    known = {"g0": 16, "g1": 16, "g2": 16, "g3": 8}
    allocated = [Seed({f"g{i}": 4 for i in range(4)}, "allocated"), Seed(known, "allocated")]

    def allocation(trials: Sequence[FrozenTrial]) -> list[Seed]:
        asked.append([trial.params["g3"] for trial in trials])
        return allocated

    seeds = tuple(
        Seed({"g0": 16, "g1": 16, "g2": 16, "g3": width}, "curve")
        for width in (1, 2, 4, 6, 8, 12, 16)
    )
    space = toy_space(seeds=seeds, allocation=allocation)
    study = optuna.create_study(directions=DIRECTIONS)
    study.sampler = EpochNSGAIISampler(lambda _: space, population_size=4, screening=Screening())
    study.optimize(objective_of(space), n_trials=16)
    kinds = [trial.user_attrs["kind"] for trial in study.trials]
    assert kinds[:9] == ["curve"] * 7 + ["random", "allocated"]
    assert set(kinds[9:]) <= {"screened", "child"}
    seen = [1, 2, 4, 6, 8, 12, 16, study.trials[7].params["g3"]]
    assert asked == [seen, seen]  # for generations 2 and 3, the same
    assert [trial.user_attrs["generation"] for trial in study.trials] == sorted([*range(4)] * 4)


def test_allocated_genomes_fill_as_many_generations_as_they_need() -> None:
    many = [Seed({f"g{i}": 2 + i + n for i in range(4)}, "allocated") for n in range(6)]
    space = toy_space(allocation=lambda trials: many)
    study = optuna.create_study(directions=DIRECTIONS)
    study.sampler = EpochNSGAIISampler(lambda _: space, population_size=4)
    study.optimize(objective_of(space), n_trials=16)
    kinds = [trial.user_attrs["kind"] for trial in study.trials]
    assert kinds == ["random"] * 4 + ["allocated"] * 6 + ["child"] * 6
    assert [trial.params for trial in study.trials[4:10]] == [seed.params for seed in many]


def test_failed_and_pruned_seeds_are_not_passed_to_the_allocation() -> None:
    received: list[TrialState] = []

    def allocation(trials: Sequence[FrozenTrial]) -> list[Seed]:
        received.extend(trial.state for trial in trials)
        return []

    space = toy_space(allocation=allocation)
    complete = trial_of(space, np.array([1, 2, 3, 4]))
    pruned = create_trial(
        state=TrialState.PRUNED,
        params=complete.params,
        distributions=complete.distributions,
        user_attrs={"epoch": 0, "generation": 0, "index": 1, "attempt": 0, "kind": "child"},
    )
    proposals = SCREENED.generation(space, 1, [complete, pruned], DIRECTIONS)
    assert received == [TrialState.COMPLETE]
    assert len(proposals) == 12
