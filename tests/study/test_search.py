"""A whole search on a tiny random model, with every sampler and every budget."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from optuna.trial import TrialState

from effllava_optuna.errors import SpecError, StudyError
from effllava_optuna.policy import Policy
from effllava_optuna.study.evolution import Epochs
from effllava_optuna.study.loop import search
from effllava_optuna.study.spec import StudySpec
from effllava_optuna.study.workbench import Workbench
from effllava_optuna.tasks import Digits
from tests.study.conftest import Opener

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.surgery import Loaded


TASK = Digits(proxy=16, validation=8, test=8)


@pytest.fixture(scope="module")
def opened(tiny: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Opener:
    place = tmp_path_factory.mktemp("artifacts")
    return Opener(tiny, TASK, place, epochs=2, generations=2, population=5)


def kinds(epochs: Epochs, epoch: int) -> set[str]:
    trials = epochs.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {t.user_attrs["kind"] for t in trials if t.user_attrs["epoch"] == epoch}


@pytest.mark.parametrize(
    ("sampler", "bred"),
    [
        ("nsga2", "child"),
        ("cma", "sample"),
        ("stock-nsga2", "nsga2"),
        ("tpe", "tpe"),
        ("random", "random"),
        ("optuna.samplers:TPESampler", "own"),
    ],
)
def test_every_sampler_runs_a_study_within_the_budget(
    opened: Opener, sampler: str, bred: str
) -> None:
    epochs = opened(sampler=sampler, kept_share=0.5)
    with epochs.bench:
        search(epochs)
        trials = epochs.study.get_trials(deepcopy=False)
        assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 20
        assert "anchor" in kinds(epochs, 0)
        assert "reeval" in kinds(epochs, 1)
        assert bred in kinds(epochs, 0) & kinds(epochs, 1)
        assert all(trial.user_attrs["kept_share"] <= 0.5 for trial in trials)


@pytest.mark.parametrize("sampler", ["nsga2", "cma", "sep-cma"])
def test_a_budget_of_latency_holds_for_every_policy(opened: Opener, sampler: str) -> None:
    epochs = opened(sampler=sampler, speedup=1.02)
    with epochs.bench:
        search(epochs)
        dense_ms = epochs.bench.bundle.dense.latency_ms
        trials = epochs.study.get_trials(deepcopy=False)
        assert len(trials) == 20
        for trial in trials:
            assert trial.values[1] <= dense_ms / 1.02 + 1e-6
            assert trial.constraints["0"] <= 0
        dense = Policy.dense(epochs.bench.anatomy)
        assert not epochs.budget.allows(epochs.bench.anatomy, dense)


def broken(message: str, chance: Callable[[int], bool]) -> Callable[..., Any]:
    """Give a measurement that fails now and then."""
    calls = iter(range(10**6))
    measure = Workbench.measure

    def measured(self: Workbench, *rest: Any) -> Any:
        if chance(next(calls)):
            raise torch.OutOfMemoryError(message)
        return measure(self, *rest)

    return measured


def test_a_trial_that_raises_fails_with_its_reason_and_the_study_goes_on(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = opened()
    monkeypatch.setattr(Workbench, "measure", broken("no room\nfor this", lambda n: n == 7))
    with epochs.bench:
        search(epochs)
    trials = epochs.study.get_trials(deepcopy=False)
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert [t.user_attrs["reason"] for t in failed] == ["OutOfMemoryError: no room for this"]
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 20


def test_too_many_failures_stop_the_study_with_their_reasons(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = opened(population=10)
    with epochs.bench:
        with monkeypatch.context() as patch:
            patch.setattr(Workbench, "measure", broken("no room", lambda n: n % 2 == 1))
            with pytest.raises(StudyError, match=r"4 of 8 trials failed: OutOfMem.*no room \(4\)"):
                search(epochs)
        search(epochs)  # the cause is mended
    trials = epochs.study.get_trials(deepcopy=False)
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 40


def test_a_search_may_be_finished_by_somebody_else_at_any_moment(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = opened(epochs=1)
    with epochs.bench:
        search(epochs)
        looks = iter([False])  # a moment ago it was not finished
        monkeypatch.setattr(Epochs, "finished", property(lambda _: next(looks, True)))
        search(epochs)
    assert len(epochs.study.get_trials(deepcopy=False)) == 10


def test_a_trial_that_takes_too_long_fails(opened: Opener) -> None:
    epochs = opened(timeout=1e-9)
    told = r"4 of 4 trials failed: TimeoutError: not done within search.timeout = 1e-09 s \(4\)"
    with epochs.bench, pytest.raises(StudyError, match=told):
        search(epochs)


def test_a_measurement_that_is_no_number_fails(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = opened(epochs=1)
    measure = Workbench.measure
    calls = iter(range(10**6))

    def measured(self: Workbench, *rest: Any) -> Any:
        found = measure(self, *rest)
        return replace(found, quality=math.nan) if next(calls) == 2 else found

    monkeypatch.setattr(Workbench, "measure", measured)
    with epochs.bench:
        search(epochs)
    (failed,) = epochs.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    assert failed.user_attrs["reason"].startswith("quality is nan, latency ")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"speedup": 1000.0}, r"search.speedup = 1000.0: the narrowest policy is \d"),
        ({"kept_share": 0.01}, r"search.kept_share = 0.01: the narrowest policy keeps 0.\d"),
    ],
)
def test_a_budget_that_nothing_meets_is_refused(
    opened: Opener, table: dict[str, float], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        opened(**table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"speedup": 1.5, "kept_share": 0.5}, "a study has one budget"),
        ({"sampler": "sep-cma"}, "needs search.speedup"),
        ({"sampler": "nsga3"}, "search.sampler = 'nsga3'"),
        ({"speedup": 0.9}, "search.speedup = 0.9"),
        ({"sampler": "cma", "population": 4}, "search.population of 5 at least"),
    ],
)
def test_impossible_searches_are_refused(table: dict[str, Any], message: str) -> None:
    document = {"study": {"name": "s"}, "model": {"path": "m"}, "task": {"name": "digits"}}
    with pytest.raises(SpecError, match=message):
        StudySpec.of(document | {"search": table})
