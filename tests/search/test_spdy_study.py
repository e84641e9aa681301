"""Whole searches for weights of sensitivity curves on a tiny random model."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from optuna.trial import TrialState

from effllava_optuna.allocation import allocation_range, residual_curves
from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.policy import Policy
from effllava_optuna.search.objective import PruningObjective
from effllava_optuna.search.runner import search
from effllava_optuna.search.session import open_session
from effllava_optuna.storage.trial_records import search_digest
from effllava_optuna.tasks import Digits
from tests.study_fixtures import StudyFactory

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import LoadedModel

pytestmark = pytest.mark.studies

TASK = Digits(proxy=16, validation=8, test=8)
POPULATION = 8


@pytest.fixture(scope="module")
def factory(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> StudyFactory:
    place = tmp_path_factory.mktemp("artifacts")
    return StudyFactory(
        tiny, TASK, place,
        sampler="spdy", curves="measured", epochs=2, generations=4, population=POPULATION,
        curve_widths=1, keep_ratio=0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def residual(factory: StudyFactory) -> Any:
    with factory(curves="residual", epochs=1, generations=3) as session:
        search(session)
        yield session


def kinds_of(trials: list[FrozenTrial], epoch: int) -> list[Counter[str]]:
    """Return the kinds of the trials of an epoch, by generation."""
    rows = sorted(
        (trial.user_attrs["generation"], trial.user_attrs["kind"])
        for trial in trials
        if trial.user_attrs["epoch"] == epoch
    )
    groups = itertools.groupby(rows, key=lambda row: row[0])
    return [Counter(kind for _, kind in group) for _, group in groups]


def test_residual_curves_are_weighted_from_the_first_generation_on(
    residual: SearchSession, factory: StudyFactory
) -> None:
    trials = residual.study.get_trials(deepcopy=False)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3 * POPULATION
    space = residual.epochs.epoch(0).space
    curves = residual_curves(space, factory.calibration.residuals)
    plain = allocation_range(space, curves, residual.costs, POPULATION // 2)
    assert [trial.params for trial in trials[: len(plain)]] == [*map(space.encode, plain)]
    assert kinds_of(trials, 0)[0] == {"allocated": len(plain), "weighted": POPULATION - len(plain)}
    programme = residual.schedule.view_of(0).programme(())
    assert programme is not None
    weighted = [trial for trial in trials if trial.user_attrs["kind"] == "weighted"]
    assert len(weighted) >= POPULATION
    for trial in weighted:
        *coefficients, position = trial.user_attrs["programme_vector"]
        assert programme.solve(coefficients, position) == trial.params
    policies = [Policy.of(space.structure, trial.user_attrs["widths"]) for trial in trials]
    assert all(map(residual.costs.allows, policies))
    assert len(set(policies)) == len(policies)


def test_a_search_that_was_interrupted_has_the_same_digest(
    residual: SearchSession, factory: StudyFactory
) -> None:
    """Every session proposes with what it reads from the storage, and no more."""
    with factory(curves="residual", epochs=1, generations=3) as session:
        study, store = session.study, session.epochs.artifact_store
        config, loaded = session.evaluator.config, factory.loaded
        study.optimize(PruningObjective(session), n_trials=11)
    with (
        study_inputs(config, loaded, factory.task) as inputs,
        open_session(study, inputs, store) as session,
    ):
        search(session)
    assert search_digest(study) == search_digest(residual.study)


def test_measured_curves_are_weighted_when_they_are_measured_in_every_epoch(
    factory: StudyFactory,
) -> None:
    with factory(trust_region=1) as session:
        search(session)
        trials = session.study.get_trials(deepcopy=False)
        first, second = (kinds_of(trials, epoch) for epoch in range(2))
        later = session.schedule.view_of(1)
        centre = later.space.decode(
            next(t.params for t in trials if t.user_attrs["kind"] == "reeval")
        )
        curves = [t for t in trials if t.user_attrs["epoch"] == 0][:POPULATION]
        assert later.programme(()) is None
        groups = session.schedule.view_of(0).programme(curves)
    assert set(first[0]) <= {"curve", "anchor"}
    assert first[1]["allocated"] >= 1
    assert first[1]["weighted"] >= 1
    assert {"weighted"} <= set(first[2]) <= {"weighted", "child"}
    assert set(second[0]) <= {"reeval", "curve", "child"}
    assert centre.snapped == ()
    assert sum(count["weighted"] for count in second) >= 1
    assert groups is not None
    assert [len(names) for names in groups.groups] == [1] * 6


def test_curves_that_are_not_measured_again_are_those_of_the_residuals(
    factory: StudyFactory,
) -> None:
    with factory(generations=2) as session:
        search(session)
        trials = session.study.get_trials(deepcopy=False)
        programme = session.schedule.view_of(1).programme(())
    assert programme is not None
    (first, *_) = kinds_of(trials, 1)
    assert set(first) == {"reeval", "weighted"}
