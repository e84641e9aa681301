from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial

from effllava_optuna.samplers import Seed, Variation
from effllava_optuna.samplers._level_grid import SpaceView
from effllava_optuna.samplers._proposals._generation_strategy import (
    GenerationStrategy,
    NSGAIIStrategy,
)
from effllava_optuna.samplers._proposals._history import ProposedGenome
from tests.samplers.toy import DIRECTIONS, ToySpace, measure, toy_space

STRATEGY = NSGAIIStrategy(seed=3, population_size=12, variation=Variation(), screening=None)
SEEDS = (
    Seed({f"g{i}": 16 for i in range(4)}, origin=None),
    Seed({"g0": 4, "g1": 6, "g2": 8, "g3": 16}, "reeval", origin=7),
    Seed({"g0": 16, "g1": 8, "g2": 2, "g3": 1}, "reeval", origin=9),
)


def complete(space: SpaceView, proposals: list[ProposedGenome]) -> list[FrozenTrial]:
    return [trial_of(space, proposal.params) for proposal in proposals]


def trial_of(
    space: SpaceView, params: Mapping[str, int], values: tuple[float, float] | None = None
) -> FrozenTrial:
    return create_trial(
        params=dict(params),
        distributions=dict(space.distributions),
        values=values or measure(params),
    )


def two_generations(
    space: SpaceView, strategy: GenerationStrategy = STRATEGY
) -> tuple[list[ProposedGenome], list[ProposedGenome]]:
    first = strategy.generation(space, 0, [], DIRECTIONS)
    return first, strategy.generation(space, 1, complete(space, first), DIRECTIONS)


def kinds(proposals: list[ProposedGenome]) -> set[str]:
    return {proposal.kind for proposal in proposals}


def keys(proposals: list[ProposedGenome]) -> set[tuple[int, ...]]:
    return {tuple(proposal.params.values()) for proposal in proposals}


def test_generations_are_a_function_of_their_arguments() -> None:
    space = toy_space(budget=40.0)
    assert two_generations(space) == two_generations(space)
    other_seed = NSGAIIStrategy(seed=4, population_size=12, variation=Variation(), screening=None)
    assert two_generations(space) != two_generations(space, other_seed)
    later = toy_space(budget=40.0, epoch=1)
    assert two_generations(space) != two_generations(later)


@pytest.mark.parametrize("budget", [None, 24.0])
def test_every_genome_is_new_admissible_and_within_the_budget(budget: float | None) -> None:
    space = toy_space(budget=budget)
    first, second = two_generations(space)
    assert kinds(first) == {"random"}
    assert kinds(second) == {"child"}
    assert len(keys(first + second)) == 24
    for proposal in first + second:
        for name, width in proposal.params.items():
            assert width in space.levels[name]
            assert type(width) is int
        assert (proposal.violation is None) == (budget is None)
        assert (proposal.violation or 0.0) <= 0


def test_random_genomes_reach_from_small_to_dense() -> None:
    sizes = [sum(p.params.values()) for p in two_generations(toy_space(genes=16))[0]]
    assert min(sizes) < 0.15 * 256
    assert max(sizes) > 0.75 * 256


def test_seeds_come_first_and_reevaluated_elites_are_the_first_parents() -> None:
    proposals = STRATEGY.generation(toy_space(epoch=1, seeds=SEEDS), 0, [], DIRECTIONS)
    assert [(p.params, p.kind, p.origin) for p in proposals[:3]] == [
        (seed.params, seed.kind, seed.origin) for seed in SEEDS
    ]
    assert kinds(proposals[3:]) == {"child"}
    assert len(keys(proposals)) == 12


def test_one_elite_has_no_children() -> None:
    proposals = STRATEGY.generation(toy_space(seeds=SEEDS[:2]), 0, [], DIRECTIONS)
    assert kinds(proposals[2:]) == {"random"}


def test_seeds_between_levels_are_measured_as_they_are() -> None:
    between = Seed({"g0": 5, "g1": 5, "g2": 5, "g3": 5})
    proposals = STRATEGY.generation(toy_space(seeds=(between,), budget=12.0), 0, [], DIRECTIONS)
    assert proposals[0].params == between.params
    assert proposals[0].violation == 4.0  # the nearest levels, 4 each, cost 16


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (
            (Seed({"g0": 1, "x": 1}),),
            "differs from its space in the genes ['g1', 'g2', 'g3', 'x'].",
        ),
    ],
)
def test_impossible_seeds_are_refused(seeds: tuple[Seed, ...], message: str) -> None:
    with pytest.raises(ValueError, match=r"[Ee]poch 0") as caught:
        STRATEGY.generation(toy_space(seeds=seeds), 0, [], DIRECTIONS)
    assert message in str(caught.value)


def test_fewer_than_two_parents_have_no_children() -> None:
    space = toy_space()
    past = complete(space, two_generations(space)[0][:1]) * 3
    assert kinds(STRATEGY.generation(space, 1, past, DIRECTIONS)) == {"random"}


def test_minimising_and_maximising_are_mirror_images() -> None:
    space = toy_space()
    first = STRATEGY.generation(space, 0, [], DIRECTIONS)
    mirrored = [
        trial_of(space, p.params, (-measure(p.params)[0], -measure(p.params)[1])) for p in first
    ]
    swapped = (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)
    assert STRATEGY.generation(space, 1, mirrored, swapped) == two_generations(space)[1]


def test_infeasible_trials_are_parents_only_if_none_is_feasible() -> None:
    space = toy_space()
    first = STRATEGY.generation(space, 0, [], DIRECTIONS)
    past = complete(space, first + two_generations(space)[1])
    for trial in past[:12]:
        trial.set_constraint("0", 1.0)
    copies = NSGAIIStrategy(1, 12, Variation(crossover_prob=0.0, mutation_prob=0.0), None)
    # Such children copy a parent, and are mutated until they are new.
    feasible = np.array([list(trial.params.values()) for trial in past[12:]])
    for proposal in copies.generation(space, 2, past, DIRECTIONS):
        child = np.array(list(proposal.params.values()))
        assert (feasible != child).sum(axis=1).min() <= 3


def test_a_space_smaller_than_a_population_repeats_itself() -> None:
    space = ToySpace({"g0": (1, 2), "g1": (3,)})
    proposals = STRATEGY.generation(space, 0, [], DIRECTIONS)
    assert len(proposals) == 12
    assert keys(proposals) == {(1, 3), (2, 3)}
    single = ToySpace({"g0": (1,)})
    assert keys(STRATEGY.generation(single, 0, [], DIRECTIONS)) == {(1,)}


def test_user_genomes_keep_their_fixed_genes_and_fit_the_budget() -> None:
    space = toy_space(budget=20.0)
    for number in range(20):
        params = STRATEGY.complete_user_genome(space, number, {"g1": 16})
        assert params["g1"] == 16
        assert sum(params.values()) <= 20
