"""Searches over image tokens and widths, with every sampler and every kind of curve."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from optuna.trial import TrialState

from effllava_optuna.calibration.calibration_run import calibrate
from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.calibration.stage_callback import silent
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.policy import IMAGE_TOKENS, Policy
from effllava_optuna.search.allocation_study import sized_for, without_search
from effllava_optuna.search.runner import search
from effllava_optuna.surgery import LoadedModel, TokenChoice
from effllava_optuna.tasks import Digits
from tests.study_fixtures import StudyFactory

if TYPE_CHECKING:
    from pathlib import Path

    from effllava_optuna.search.session import SearchSession

pytestmark = pytest.mark.studies
TASK = Digits(proxy=16, validation=8, test=8)
SHARES = {25, 50, 100}


def factory_of(loaded: LoadedModel, directory: Path, *, in_context: bool = False) -> StudyFactory:
    """Return what opens studies of a budget that no policy with all image tokens needs."""
    pruning = {"visual_tokens": [0.25, 0.5], "in_context": in_context}
    return StudyFactory(
        loaded, TASK, directory, pruning, epochs=2, generations=3, population=6, speedup=1.6
    )


@pytest.fixture(scope="module")
def factory(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> StudyFactory:
    return factory_of(tiny, tmp_path_factory.mktemp("artifacts"))


def finished_policies(session: SearchSession) -> list[Policy]:
    """Run a search, check that its trials are within the budget, and return their policies."""
    with session:
        search(session)
        trials = session.study.get_trials(deepcopy=False)
        assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 36
        limit = session.evaluator.calibration.dense.latency_ms / 1.6
        policies = []
        for trial in trials:
            policy = Policy.of(session.evaluator.structure, trial.user_attrs["widths"])
            policies.append(policy)
            if trial.user_attrs["kind"] == "curve":
                continue
            assert session.costs.allows(policy)
            if trial.user_attrs["epoch"] == 0:  # later ones are corrected
                assert trial.values[1] <= limit + 1e-6
    return policies


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [
        ("nsga2", {"curves": "measured"}),
        ("nsga2", {"curves": "none"}),
        ("cma", {}),
        ("sep-cma", {}),
        ("stock-nsga2", {}),
        ("tpe", {}),
        ("random", {}),
        ("spdy", {}),
        ("spdy", {"curves": "measured", "generations": 6, "epochs": 1}),
        ("allocation", {"curves": "measured", "generations": 6, "epochs": 1}),
    ],
)
def test_every_sampler_chooses_image_tokens_within_the_budget(
    factory: StudyFactory, sampler: str, settings: dict[str, Any]
) -> None:
    policies = finished_policies(factory(sampler=sampler, **settings))
    tokens = {policy.widths[0] for policy in policies}
    assert policies[0].structure.components[0] is IMAGE_TOKENS
    assert tokens <= SHARES
    assert len(tokens) > 1
    assert len({policy.widths[1:] for policy in policies}) > 1


def test_the_first_policies_are_the_best_of_each_share(factory: StudyFactory) -> None:
    """By the residuals of the share; compared with policies that are drawn."""
    with factory(population=12) as session:
        before, measured = session.epochs.epoch(0), session.evaluator.calibration
    # A component that these policies prune gets a curve that forbids it with fewer tokens.
    changed = measured.structure.components[-2].id
    curve = {width: 1e3 * loss for width, loss in measured.residuals[changed].items()}
    reduced = {
        tokens: {**residuals, changed: curve}
        for tokens, residuals in measured.reduced_residuals.items()
    }
    calibration = factory.calibration = replace(measured, reduced_residuals=reduced)
    with factory(population=12) as session:
        epoch, costs = session.epochs.epoch(0), session.costs
    factory.calibration = measured
    space = epoch.space
    rng = np.random.default_rng(0)
    drawn = [
        space.policy([int(rng.choice(gene.widths)) for gene in space.genes]) for _ in range(3000)
    ]
    residuals = {**calibration.reduced_residuals, 100: calibration.residuals}

    def loss(policy: Policy) -> float:
        tokens, *_ = policy.widths
        pairs = zip(policy.structure.components, policy.widths, strict=True)
        return sum(residuals[tokens][each.id][width] for each, width in [*pairs][1:])

    found = set()
    for seed in epoch.seeds:
        policy = space.decode(seed.params).policy
        if seed.kind == "allocated":
            found.add(policy.widths[0])
            assert costs.allows(policy)
            assert loss(policy) <= 1e-9 + min(
                (
                    loss(other)
                    for other in drawn
                    if other.widths[0] == policy.widths[0]
                    and costs.cost(other) <= costs.cost(policy)
                ),
                default=math.inf,
            )
    assert found == {policy.widths[0] for policy in drawn if costs.allows(policy)}
    assert len(found) > 1
    assert epoch.seeds != before.seeds


def test_tables_in_context_and_a_trust_region_keep_the_choice_of_tokens(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    factory = factory_of(tiny, tmp_path, in_context=True)
    policies = finished_policies(factory(trust_region=1))
    assert len({policy.widths[0] for policy in policies}) > 1


def test_what_is_generated_counts_in_the_latency_of_fewer_tokens(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    factory = factory_of(tiny, tmp_path)
    factory.latency["new_tokens"] = 4
    with study_inputs(factory.config(), tiny, TASK) as inputs:
        factory.calibration = calibrate(inputs, inputs.stopwatch(), silent)
    session = factory(sampler="nsga2")
    table = session.evaluator.calibration.latency
    assert {len(each.dense_ms) for each in (table, *table.fewer.values())} == {2}
    assert len({policy.widths[0] for policy in finished_policies(session)}) > 1


@pytest.mark.parametrize("curves", ["measured", "none", "residual"])
def test_an_allocation_without_a_search_has_a_size(tiny: LoadedModel, curves: str) -> None:
    choosing = tiny.with_token_choice(TokenChoice((25, 50, 100)))
    config = StudyConfig.of(
        {
            "study": {"name": "tiny"},
            "model": {"path": "tiny"},
            "task": {"name": "digits"},
            "pruning": {"visual_tokens": [0.25, 0.5]},
            "search": {"speedup": 1.6, "curves": curves},
        }
    )
    sized = sized_for(without_search(config), choosing).search
    assert sized.sampler == "allocation"
    points = 1 + 2 * len(choosing.structure.components)  # of measured curves
    assert sized.trials >= (points if curves == "measured" else sized.population)
