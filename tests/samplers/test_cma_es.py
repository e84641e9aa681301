from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna._hypervolume import compute_hypervolume
from optuna.distributions import IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from effllava_optuna.samplers import (
    CmaOptions,
    EpochCMASampler,
    EpochNSGAIISampler,
    Seed,
    effective_trials,
)
from effllava_optuna.samplers._cma_es._cma_optimisers import (
    ConstrainedOrder,
    MultiObjectiveCma,
    SeparableCma,
)
from effllava_optuna.samplers._cma_es._cma_sampler import CMAStrategy
from effllava_optuna.samplers._level_grid import LevelGrid
from effllava_optuna.samplers._proposals._generation_strategy import GenerationTask, random_stream
from effllava_optuna.samplers._proposals._history import History
from effllava_optuna.samplers._proposals._operators import Variation
from tests.samplers.toy import (
    DIRECTIONS,
    ToySpace,
    digest,
    measure,
    objective_of,
    suggest,
    toy_space,
)

SPACE = toy_space(budget=40.0)
DEFAULT = CmaOptions()


def study_of(
    space: ToySpace = SPACE,
    directions: Sequence[StudyDirection] = DIRECTIONS,
    options: CmaOptions = DEFAULT,
    **sizes: Any,
) -> optuna.Study:
    sizes = {"population_size": 6, **sizes}
    sampler = EpochCMASampler(lambda _: space, options=options, **sizes)
    return optuna.create_study(directions=directions, sampler=sampler)


def run(n_trials: int, space: ToySpace = SPACE, **options: Any) -> optuna.Study:
    study = study_of(space, **options)
    study.optimize(objective_of(space), n_trials=n_trials)
    return study


def test_later_generations_are_samples_of_a_kernel_and_the_mean_of_the_one_before() -> None:
    kinds = [trial.user_attrs["kind"] for trial in run(24).trials]
    assert kinds[:6] == ["random"] * 6
    assert kinds[6:12] == ["sample"] * 5 + ["child"]  # all means are measured already
    assert sorted(kinds[12:18]) == sorted(kinds[18:]) == ["centre"] + ["sample"] * 5


@pytest.mark.parametrize("budget", [None, 24.0])
def test_every_genome_is_admissible_and_within_the_budget(budget: float | None) -> None:
    space = toy_space(budget=budget)
    for trial in run(36, space).trials:
        for name, width in trial.params.items():
            assert width in space.levels[name]
        assert budget is None or sum(trial.params.values()) <= budget


def test_fresh_samplers_continue_the_same_search() -> None:
    whole, parts = run(31), study_of()
    for n_trials in (1, 9, 14, 7):
        parts.sampler = EpochCMASampler(lambda _: SPACE, population_size=6)
        parts.optimize(objective_of(SPACE), n_trials=n_trials)
    assert digest(parts) == digest(whole)


@pytest.mark.parametrize("limit", [None, 20.0])
def test_the_replayed_optimiser_is_the_live_one(limit: float | None) -> None:
    """The live optimiser asks and tells generation by generation and is never created anew."""
    options = CmaOptions(limit=limit)
    study = run(30, options=options)
    strategy = CMAStrategy(0, 6, Variation(), None, options)
    grid = LevelGrid.of(SPACE)
    history = History.of(grid, list(effective_trials(study.trials).values()), DIRECTIONS)
    live = strategy.replay(GenerationTask(SPACE, grid, 1, 1, history))
    assert live is not None
    for generation in range(1, 5):
        asked = live.ask()
        rows = history.rows_of(generation)
        live.tell([(history.genomes[rows[i]], history.losses[rows[i]]) for i in range(len(asked))])
    replayed = strategy.replay(GenerationTask(SPACE, grid, 5, 1, history))
    assert type(replayed) is type(live)
    assert state_of(replayed) == state_of(live)
    assert [sample.genome.tolist() for sample in live.ask()] == [
        sample.genome.tolist() for sample in replayed.ask()
    ]


def state_of(optimiser: MultiObjectiveCma | SeparableCma | None) -> list[Any]:
    if isinstance(optimiser, MultiObjectiveCma):
        kernels = optimiser.optimiser.kernels
        return [(kernel._mean.tolist(), kernel._sigma, kernel._C.tolist()) for kernel in kernels]
    assert isinstance(optimiser, SeparableCma)
    inner = optimiser.optimiser
    return [inner.mean.tolist(), inner._sigma, inner._C.tolist()]


def test_a_slot_that_fails_for_good_is_not_waited_for() -> None:
    study = study_of()

    def failing(trial: optuna.Trial) -> tuple[float, float]:
        params = suggest(trial, SPACE)
        if trial.user_attrs["index"] == 2 and trial.user_attrs["generation"] in (1, 2):
            raise RuntimeError("out of memory")
        return measure(params)

    study.optimize(failing, n_trials=34, catch=(RuntimeError,))
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.FAIL) == 4  # twice each
    assert states.count(TrialState.COMPLETE) == 30
    assert max(trial.user_attrs["generation"] for trial in study.trials) == 5


def test_an_epoch_without_a_complete_trial_is_searched_at_random() -> None:
    study = study_of()

    def broken(trial: optuna.Trial) -> tuple[float, float]:
        suggest(trial, SPACE)
        raise RuntimeError("no")

    study.optimize(broken, n_trials=14, catch=(RuntimeError,))
    assert {trial.user_attrs["kind"] for trial in study.trials} == {"random"}


def test_failed_and_infeasible_samples_get_losses_worse_than_all_others() -> None:
    losses = np.array([[1.0, 4.0], [3.0, 2.0]])
    history = History([], [], losses, np.zeros(2), np.ones(2))
    assert history.penalty_losses(0.0).tolist() == [5.0, 6.0]
    assert history.penalty_losses(0.5).tolist() == [6.0, 7.0]


def test_minimising_and_maximising_are_mirror_images() -> None:
    mirror = study_of(directions=(StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE))

    def mirrored(trial: optuna.Trial) -> tuple[float, float]:
        quality, size = measure(suggest(trial, SPACE))
        return -quality, -size

    mirror.optimize(mirrored, n_trials=30)
    assert [trial.params for trial in mirror.trials] == [trial.params for trial in run(30).trials]


def test_a_new_epoch_starts_at_the_elites_measured_again() -> None:
    elites = [
        {"g0": 4, "g1": 6, "g2": 8, "g3": 12},
        {"g0": 1, "g1": 2, "g2": 8, "g3": 12},
        {"g0": 8, "g1": 8, "g2": 12, "g3": 12},
    ]
    seeds = tuple(Seed(params, "reeval", number) for number, params in enumerate(elites))
    space = toy_space(epoch=1, seeds=seeds)
    study = run(12, space, population_size=12, options=CmaOptions(step_size=0.01))
    assert [trial.params for trial in study.trials[:3]] == elites
    study.optimize(objective_of(space), n_trials=12)
    levels = np.array(space.levels["g0"])
    rows = [[int(np.abs(levels - w).argmin()) for w in t.params.values()] for t in study.trials]
    best = np.array(rows[:12])
    for row in rows[12:23]:  # with so small a step, samples lie beside a mean
        assert np.abs(best - np.array(row)).sum(axis=1).min() <= 2


def test_with_a_limit_the_best_quality_within_it_is_searched() -> None:
    space = toy_space(genes=12)
    limit = 60.0

    def best(study: optuna.Study) -> float:
        values = [trial.values for trial in study.trials if trial.values]
        return max(float(value[0]) for value in values if value[1] <= limit)

    def at_random(seed: int) -> float:
        rng = random_stream(seed, "random search")
        rows = [
            {name: int(rng.choice(levels[:5])) for name, levels in space.levels.items()}
            for _ in range(150)
        ]
        return max(quality for quality, size in map(measure, rows) if size <= limit)

    options = CmaOptions(limit=limit)
    searched = [
        best(run(150, space, population_size=15, options=options, seed=seed)) for seed in range(3)
    ]
    assert min(searched) > max(at_random(seed) for seed in range(3))


def test_a_single_objective_is_minimised() -> None:
    space = toy_space(genes=6)
    study = study_of(space, (StudyDirection.MINIMIZE,), population_size=10)

    def shortfall(trial: optuna.Trial) -> float:
        return float(sum((w - 6) ** 2 for w in suggest(trial, space).values()))

    study.optimize(shortfall, n_trials=150)
    assert study.best_value == 0


def test_genes_with_one_level_keep_it() -> None:
    space = ToySpace({"g0": (1, 2, 4), "g1": (8,), "g2": (1, 2, 3, 4)})
    assert {trial.params["g1"] for trial in run(24, space).trials} == {8}
    one_free = ToySpace({"g0": tuple(range(1, 40)), "g1": (8,)})
    assert len({trial.params["g0"] for trial in run(24, one_free).trials}) == 24


def test_trials_within_the_limit_rank_first() -> None:
    order = ConstrainedOrder(limit=5.0)
    ordered = sorted(
        [(-9.0, 7.0), (-1.0, 5.0), (-3.0, 4.0), (-2.0, 5.5)], key=lambda v: order.key(np.array(v))
    )
    assert ordered == [(-3.0, 4.0), (-1.0, 5.0), (-2.0, 5.5), (-9.0, 7.0)]


def test_three_objectives_are_refused() -> None:
    study = study_of(directions=(StudyDirection.MINIMIZE,) * 3)

    def three(trial: optuna.Trial) -> tuple[float, float, float]:
        quality, size = measure(suggest(trial, SPACE))
        return quality, size, size

    with pytest.raises(ValueError, match="one or two objectives, not 3"):
        study.optimize(three, n_trials=7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population_size": 4}, "population_size must be at least 5, not 4"),
        ({"seed": -1}, "seed must not be negative, not -1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochCMASampler(None, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": 1}, "kernels must be at least 2, not 1"),
        ({"step_size": 0.0}, r"step_size must be in \(0, 1\], not 0.0"),
    ],
)
def test_impossible_cma_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CmaOptions(**options)


def zdt1(x: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Zitzler, Deb & Thiele 2000; its front is ``f2 = 1 - sqrt(f1)`` where all but x[0] are 0."""
    g = 1 + 9 * float(x[1:].mean())
    return float(x[0]), g * (1 - float(np.sqrt(x[0] / g)))


def dtlz2(x: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Deb et al. 2005, two objectives; its front is a quarter of the unit circle."""
    g = float(((x[1:] - 0.5) ** 2).sum())
    angle = float(x[0]) * np.pi / 2
    return (1 + g) * float(np.cos(angle)), (1 + g) * float(np.sin(angle))


@pytest.mark.parametrize("sampler", [EpochCMASampler, EpochNSGAIISampler])
@pytest.mark.parametrize(("problem", "corner"), [(zdt1, 11.0), (dtlz2, 4.0)])
def test_known_fronts_are_approached(
    sampler: Any, problem: Callable[..., tuple[float, float]], corner: float
) -> None:
    """With 21 levels per gene both fronts can be reached exactly; random search stays far."""
    names = [f"x{i:02}" for i in range(10)]
    space = ToySpace({name: tuple(range(1, 22)) for name in names})
    reference = np.array([corner, corner])

    def evaluated(params: dict[str, int]) -> tuple[float, float]:
        return problem(np.array([(params[name] - 1) / 20 for name in names]))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        return evaluated({name: trial.suggest_int(name, 1, 21) for name in names})

    study = optuna.create_study(
        directions=["minimize", "minimize"],
        sampler=sampler(lambda _: space, population_size=12, seed=1),
    )
    study.optimize(objective, n_trials=480)
    rng = random_stream(0, "random search")
    drawn = [evaluated({name: int(rng.integers(1, 22)) for name in names}) for _ in range(480)]
    grid = np.arange(21) / 20
    others = np.zeros(9) if problem is zdt1 else np.full(9, 0.5)
    front = [problem(np.concatenate([[value], others])) for value in grid]

    def volume(points: Sequence[Sequence[float]]) -> float:
        return float(compute_hypervolume(np.array(points), reference))

    ideal, random = volume(front), volume(drawn)
    searched = volume([trial.values for trial in study.trials])
    assert random < searched <= ideal + 1e-9
    assert (ideal - searched) < 0.35 * (ideal - random)


def test_distributions_must_fit() -> None:
    class WithSteps(ToySpace):
        @property
        def distributions(self) -> dict[str, IntDistribution]:
            return {"g0": IntDistribution(1, 4, step=3)}

    with pytest.raises(ValueError, match="needs an IntDistribution of step 1"):
        run(1, WithSteps({"g0": (1, 4)}))
