"""Studies without a search: the policies of dynamic programming over sensitivity curves."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from optuna.trial import TrialState

from effllava_optuna.allocation import dynamic_programming, residual_curves
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.errors import ConfigError
from effllava_optuna.policy import Policy
from effllava_optuna.search.allocation_study import sized_for
from effllava_optuna.search.runner import conclude, search
from effllava_optuna.storage.names import RESULTS
from effllava_optuna.surgery import PruningOptions
from effllava_optuna.tasks import Digits
from tests.study_fixtures import StudyFactory

if TYPE_CHECKING:
    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import LoadedModel

TASK = Digits(proxy=16, validation=8, test=8)


@pytest.fixture(scope="module")
def factory(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> StudyFactory:
    place = tmp_path_factory.mktemp("artifacts")
    return StudyFactory(tiny, TASK, place, epochs=1, sampler="allocation", population=9,
                        curves="measured", keep_ratio=0.5)  # fmt: skip


def sizes(config: StudyConfig, loaded: LoadedModel) -> dict[str, Any]:
    search = sized_for(config, loaded).search
    return {"generations": search.generations, "population": search.population}


def kinds_of(session: SearchSession) -> list[list[str]]:
    """Return the kinds of the trials, by epoch and generation."""
    kinds: dict[tuple[int, int], list[str]] = {}
    for trial in session.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        attrs = trial.user_attrs
        kinds.setdefault((attrs["epoch"], attrs["generation"]), []).append(attrs["kind"])
    return list(kinds.values())


def allocated(session: SearchSession) -> list[Policy]:
    trials = session.study.get_trials(deepcopy=False)
    return [
        Policy.of(session.evaluator.structure, trial.user_attrs["widths"])
        for trial in trials
        if trial.user_attrs["kind"] == "allocated"
    ]


def test_curves_fill_generations_and_the_programme_one_more(factory: StudyFactory) -> None:
    config = factory.config()
    sized = sizes(config, factory.loaded)
    assert sized == {"generations": 3, "population": 8}  # 1 + 3 x 2 + 3 x 3 points
    with factory(**sized) as session:
        search(session)
        *curves, last = kinds_of(session)
        counted = Counter(kind for generation in curves for kind in generation)
        assert counted == {"curve": 16}
        assert set(last) == {"allocated"}
        first, *others = allocated(session)
        assert session.costs.allows(first)
        assert all(other.keep_ratio <= first.keep_ratio for other in others)
        conclude(session)
        results = session.study.user_attrs[RESULTS]
        assert results["chosen"]["accuracy_test"] is not None
        assert results["chosen"]["epoch"] == 0


def test_residual_curves_take_one_generation(factory: StudyFactory) -> None:
    sized = sizes(factory.config(curves="residual"), factory.loaded)
    assert sized == {"generations": 1, "population": 9}
    with factory(curves="residual", **sized) as session:
        search(session)
        assert kinds_of(session) == [["allocated"] * 9]
        space = session.epochs.epoch(0).space
        curves = residual_curves(space, factory.calibration.residuals)
        assert allocated(session)[0] == dynamic_programming(space, curves, session.costs)


def test_residual_curves_begin_a_search_without_measured_curves(factory: StudyFactory) -> None:
    with factory(
        sampler="nsga2", curves="residual", trust_region=1, generations=4, epochs=2
    ) as session:
        search(session)
        first, second, _, _, third, *_ = kinds_of(session)
    assert {"anchor", "allocated"} <= set(first)
    assert set(second) <= {"child", "screened"}
    assert {"reeval", "curve"} <= set(third)  # in context, as `trust_region` says


def test_without_a_budget_the_programme_reaches_from_dense_to_narrowest(
    factory: StudyFactory,
) -> None:
    with factory(curves="residual", generations=1, keep_ratio=None) as session:
        search(session)
        policies = allocated(session)
        assert policies[0] == Policy.dense(session.evaluator.structure)
        assert policies[-1] == session.evaluator.calibration.narrowest


def test_tied_components_share_a_point_of_a_curve(factory: StudyFactory) -> None:
    tied = factory.config().model_copy(
        update={"pruning": factory.config().pruning.model_copy(update={"mode": "vllm-safe"})}
    )
    assert sizes(tied, factory.loaded) == {"generations": 2, "population": 6}


@pytest.mark.parametrize(
    ("search_keys", "pruning", "message"),
    [
        (
            {"sampler": "allocation", "curves": "none"},
            {},
            r"sampler is 'allocation', which needs search\.curves = 'measured' or 'residual'",
        ),
        (
            {"sampler": "spdy", "curves": "none"},
            {},
            r"sampler is 'spdy', which needs search\.curves = 'measured' or 'residual'",
        ),
        (
            {"curves": "residual"},
            {"compensation": "none", "importance": "magnitude"},
            r"curves is 'residual', but pruning\.compensation = 'none' with "
            r"pruning\.importance = 'magnitude' has no residuals; use 'measured'",
        ),
    ],
)
def test_a_study_file_without_the_curves_it_needs_is_refused(
    search_keys: dict[str, Any], pruning: dict[str, Any], message: str
) -> None:
    document = {
        "study": {"name": "s"},
        "model": {"path": "digits-vlm"},
        "task": {"name": "digits"},
        "search": search_keys,
        "pruning": pruning,
    }
    with pytest.raises(ConfigError, match=message):
        StudyConfig.of(document)


@pytest.mark.parametrize("importance", ["magnitude", "random", "wanda", "obs"])
@pytest.mark.parametrize("compensation", ["none", "bias", "least-squares"])
def test_a_study_file_knows_whether_calibration_uses_samples(
    importance: Any, compensation: Any
) -> None:
    document: dict[str, Any] = {
        "study": {"name": "s"},
        "model": {"path": "digits-vlm"},
        "task": {"name": "digits"},
        "pruning": {"importance": importance, "compensation": compensation},
        "search": {"curves": "none"},
    }
    uses_samples = StudyConfig.of(document).pruning.uses_samples
    assert uses_samples == PruningOptions(importance, compensation).needs_samples
