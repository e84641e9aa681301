"""A whole search on a tiny random model, with every sampler and every budget."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import torch
from optuna.trial import TrialState

from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.errors import ConfigError, StudyError
from effllava_optuna.objectives import fit_correction
from effllava_optuna.policy import Policy, front_of
from effllava_optuna.report import study_document
from effllava_optuna.search.epochs import projector_round
from effllava_optuna.search.epochs.epoch_registry import EpochRegistry
from effllava_optuna.search.epochs.schedule import EpochSchedule
from effllava_optuna.search.evaluator import Evaluator
from effllava_optuna.search.final_selection import FinalSelection
from effllava_optuna.search.runner import Callbacks, search
from effllava_optuna.search.session import SearchSession
from effllava_optuna.storage.study_facts import read_study_facts
from effllava_optuna.storage.trial_records import effective_records
from effllava_optuna.tasks import Digits
from tests.study_fixtures import StudyFactory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from effllava_optuna.policy import TrialRecord
    from effllava_optuna.surgery import LoadedModel


TASK = Digits(proxy=16, validation=8, test=8)


@pytest.fixture(scope="module")
def factory(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> StudyFactory:
    place = tmp_path_factory.mktemp("artifacts")
    return StudyFactory(tiny, TASK, place, epochs=2, generations=2, population=5)


@pytest.fixture
def opened(factory: StudyFactory) -> Iterator[StudyFactory]:
    yield factory
    factory.latency.clear()


def kinds(session: SearchSession, epoch: int) -> set[str]:
    trials = session.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {t.user_attrs["kind"] for t in trials if t.user_attrs["epoch"] == epoch}


@pytest.mark.parametrize(
    ("sampler", "bred"),
    [
        ("nsga2", "screened"),
        ("cma", "sample"),
        ("stock-nsga2", "nsga2"),
        ("tpe", "tpe"),
        ("random", "random"),
        ("optuna.samplers:TPESampler", "own"),
    ],
)
def test_every_sampler_runs_a_study_within_the_budget(
    opened: StudyFactory, sampler: str, bred: str
) -> None:
    session = opened(sampler=sampler, keep_ratio=0.5)
    with session:
        search(session)
        trials = session.study.get_trials(deepcopy=False)
        assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 20
        assert "anchor" in kinds(session, 0)
        assert "reeval" in kinds(session, 1)
        assert bred in kinds(session, 1)  # epoch 0 may consist of seeds
        assert all(trial.user_attrs["keep_ratio"] <= 0.5 for trial in trials)


@pytest.mark.parametrize("sampler", ["nsga2", "cma", "sep-cma"])
def test_a_budget_of_latency_holds_for_every_policy(opened: StudyFactory, sampler: str) -> None:
    session = opened(sampler=sampler, speedup=1.02)
    with session:
        search(session)
        dense_ms = session.evaluator.calibration.dense.latency_ms
        trials = session.study.get_trials(deepcopy=False)
        assert len(trials) == 20
        for trial in trials:
            assert trial.values[1] <= dense_ms / 1.02 + 1e-6
            assert trial.constraints["0"] <= 0
        dense = Policy.dense(session.evaluator.structure)
        assert not session.costs.allows(dense)


class Clock:
    """Networks that save a share of what the table predicts, on a machine twice as slow."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.timed: list[list[Policy]] = []

    def time_networks(
        self,
        evaluator: Evaluator,
        networks: Any,
        seconds: float,
        progress: Callable[[float], None],
    ) -> list[float]:
        assert seconds == evaluator.config.latency.recheck_seconds
        table = evaluator.calibration.latency
        self.timed.append([policy for _, policy in networks])
        progress(1.0)
        return [2 * table.predict(policy, self.share) for _, policy in networks]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Clock]:
    def start(share: float) -> Clock:
        clock = Clock(share)
        monkeypatch.setattr(
            Evaluator, "time_networks", lambda *rest: Clock.time_networks(clock, *rest)
        )
        monkeypatch.setattr(projector_round, "fit_correction", fit_correction)
        return clock

    return start


def test_an_epoch_predicts_with_what_whole_runs_of_the_last_front_saved(
    opened: StudyFactory, clock: Callable[[float], Clock]
) -> None:
    timed = clock(0.8).timed
    with opened(keep_ratio=0.5) as session:
        search(session)
        (networks,) = timed
        assert networks[0] == Policy.dense(session.evaluator.structure)
        assert 2 <= len(networks) <= 5
        records = effective_records(session.study)
        front = {record.widths for record in front_of([r for r in records if r.epoch == 0])}
        assert {policy.widths for policy in networks[1:]} <= front
        assert session.epochs.epoch(1).latency_factor == pytest.approx(0.8)
        table = session.evaluator.calibration.latency
        for record in records:
            policy = Policy.of(session.evaluator.structure, record.widths)
            factor = 0.8 if record.epoch else 1.0
            assert record.latency_ms == pytest.approx(table.predict(policy, factor))
        # Another process reads what the first one published.
        other = EpochRegistry(
            session.epochs.control_study, session.epochs.artifact_store, session.epochs.epoch(0)
        )
        assert other.epoch(1).latency_factor == session.epochs.epoch(1).latency_factor
        results = FinalSelection(session).run()
        report = study_document(read_study_facts(session.study))
    table_report = report["latency_table"]
    assert table_report["finalists_error"] == pytest.approx(0, abs=1e-9)
    (correction,) = table_report["corrections"]
    assert correction["latency_factor"] == pytest.approx(0.8)
    assert all(error < -1e-3 for error in correction["latency_errors"])
    for row in results["front"]:
        assert row["speedup_measured"] == pytest.approx(row["speedup_predicted"])


def test_an_epoch_without_a_training_publishes_no_projector(opened: StudyFactory) -> None:
    with opened(keep_ratio=0.5) as session:
        assert session.config.projector.steps == 0
        search(session)
        attempt = session.epochs.control_study.published_attempt(1)
        assert attempt is not None
        assert attempt.user_attrs["steps"] == 0
        assert not {"artifact", "seconds", "crossfit_curve"} & set(attempt.user_attrs)
        front = [record.accuracy for record in effective_records(session.study)]
        assert min(front) <= attempt.values[0] <= max(front)
        report = study_document(read_study_facts(session.study))
    assert [update["steps"] for update in report["projector"]] == [0]


def test_every_stage_of_the_final_selection_reports_its_share(opened: StudyFactory) -> None:
    shares: dict[str, list[float]] = {}
    with opened(keep_ratio=0.5) as session:
        search(session)
        watched = replace(
            session,
            report_stage=lambda stage, share: shares.setdefault(stage, []).append(share),
        )
        FinalSelection(watched).run()
    for stage in ("choosing by validation", "timing the finalists", "opening the test split"):
        assert shares[stage] == sorted(shares[stage])
        assert len(shares[stage]) > 2
        assert shares[stage][-1] >= 0.75
    assert shares["choosing by validation"][-1] == 1.0


def test_an_epoch_of_a_version_without_corrections_expects_all_savings(
    opened: StudyFactory,
) -> None:
    with opened(keep_ratio=0.5) as session:
        search(session)
        control = session.epochs.control_study
        attempt = control.published_attempt(1)
        assert attempt is not None
        for name in ("latency_factor", "latency_errors"):  # in the storage, which is in memory
            del attempt.user_attrs[name]
        other = EpochRegistry(control, session.epochs.artifact_store, session.epochs.epoch(0))
        assert other.epoch(1).latency_factor == 1
        report = study_document(read_study_facts(session.study))
    correction = {"latency_factor": 1.0, "latency_errors": []}
    assert report["latency_table"]["corrections"] == [correction]


def test_without_rechecks_latencies_stay_those_of_the_table(
    opened: StudyFactory, clock: Callable[[float], Clock]
) -> None:
    timed = clock(0.8).timed
    opened.latency["rechecks"] = 0
    with opened(keep_ratio=0.5) as session:
        search(session)
        assert session.epochs.epoch(1).latency_factor == 1
    assert timed == []


@pytest.mark.parametrize("share", [0.7, 1.3])
def test_a_budget_of_latency_follows_the_correction(
    opened: StudyFactory, clock: Callable[[float], Clock], share: float
) -> None:
    clock(share)
    with opened(speedup=1.5) as session:
        search(session)
        limit = session.evaluator.calibration.dense.latency_ms / 1.5 + 1e-6
        table = session.evaluator.calibration.latency
        for record in effective_records(session.study):
            policy = Policy.of(session.evaluator.structure, record.widths)
            if record.epoch == 1 and record.kind != "reeval":
                assert record.feasible
                assert table.predict(policy, share) <= limit
        results = FinalSelection(session).run()
        assert min(row["speedup_measured"] for row in results["front"]) >= 1.5 - 1e-6


def test_a_budget_in_milliseconds_is_that_of_the_speedup(
    opened: StudyFactory, clock: Callable[[float], Clock]
) -> None:
    clock(1.0)
    searched = []
    dense_ms = 1.0
    for budget in ("speedup", "latency_ms"):
        value = 1.5 if budget == "speedup" else dense_ms / 1.5
        with opened(**{budget: value}) as session:
            dense_ms = session.evaluator.calibration.dense.latency_ms
            search(session)
            searched.append([record.widths for record in effective_records(session.study)])
            assert session.costs.setting == f"search.{budget} = {value:g}"
    assert searched[0] == searched[1]


def test_a_speedup_that_no_policy_reaches_any_more_is_approached_with_a_warning(
    opened: StudyFactory, clock: Callable[[float], Clock], caplog: pytest.LogCaptureFixture
) -> None:
    clock(0.5)
    with opened(speedup=2.5) as session:
        search(session)
        narrowest = session.evaluator.calibration.narrowest
        costs = session.schedule.view_of(1).cost_model
        assert costs.allows(narrowest)
        assert session.epochs.epoch(1).latency_factor > 0.5
        assert FinalSelection(session).run()["chosen"]["speedup_predicted"] >= 2.5 - 1e-6
    assert "search.speedup = 2.5: by the policies that were run whole, no policy" in caplog.text


def broken(message: str, chance: Callable[[int], bool]) -> Callable[..., Any]:
    """Give a measurement that fails now and then."""
    calls = iter(range(10**6))
    measure = Evaluator.measure

    def measured(self: Evaluator, *rest: Any) -> Any:
        if chance(next(calls)):
            raise torch.OutOfMemoryError(message)
        return measure(self, *rest)

    return measured


def test_a_trial_that_raises_fails_with_its_reason_and_the_study_goes_on(
    opened: StudyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened()
    monkeypatch.setattr(Evaluator, "measure", broken("no room\nfor this", lambda n: n == 7))
    with session:
        search(session)
    trials = session.study.get_trials(deepcopy=False)
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert [t.user_attrs["reason"] for t in failed] == ["OutOfMemoryError: no room for this"]
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 20


def test_too_many_failures_stop_the_study_with_their_reasons(
    opened: StudyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(population=10)
    with session:
        with monkeypatch.context() as patch:
            patch.setattr(Evaluator, "measure", broken("no room", lambda n: n % 2 == 1))
            with pytest.raises(StudyError, match=r"4 of 8 trials failed: OutOfMem.*no room \(4\)"):
                search(session)
        search(session)  # the cause is mended
    trials = session.study.get_trials(deepcopy=False)
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 40


def test_a_search_may_be_finished_by_somebody_else_at_any_moment(
    opened: StudyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(epochs=1)
    with session:
        search(session)
        looks = iter([False])  # a moment ago it was not finished
        monkeypatch.setattr(EpochSchedule, "finished", property(lambda _: next(looks, True)))
        search(session)
    assert len(session.study.get_trials(deepcopy=False)) == 10


def test_a_trial_that_takes_too_long_fails(opened: StudyFactory) -> None:
    session = opened(timeout=1e-9)
    message = (
        r"4 of 4 trials failed: TimeoutError: not finished within search.timeout = 1e-09 s \(4\)"
    )
    with session, pytest.raises(StudyError, match=message):
        search(session)


def test_a_measurement_that_is_no_number_fails(
    opened: StudyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(epochs=1)
    measure = Evaluator.measure
    calls = iter(range(10**6))

    def measured(self: Evaluator, *rest: Any) -> Any:
        measurement = measure(self, *rest)
        return replace(measurement, quality=math.nan) if next(calls) == 2 else measurement

    monkeypatch.setattr(Evaluator, "measure", measured)
    with session:
        search(session)
    (failed,) = session.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    assert failed.user_attrs["reason"].startswith("quality is nan, latency ")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"speedup": 1000.0}, r"search.speedup = 1000.0: the narrowest policy is \d"),
        ({"latency_ms": 1e-6}, r"search.latency_ms = 1e-06: the narrowest policy is \d"),
        ({"latency_ms": 1e9}, r"search.latency_ms = 1e\+09: the dense model takes \d.* ms"),
        ({"keep_ratio": 0.01}, r"search.keep_ratio = 0.01: the narrowest policy keeps 0.\d"),
    ],
)
def test_a_budget_that_nothing_meets_is_refused(
    opened: StudyFactory, table: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(**table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"speedup": 1.5, "keep_ratio": 0.5}, "are both set; use one budget"),
        ({"speedup": 1.5, "latency_ms": 9.0}, "are both set; use one budget"),
        ({"sampler": "sep-cma"}, "needs search.speedup or search.latency_ms"),
        ({"latency_ms": 0.0}, "search.latency_ms = 0.0"),
        ({"sampler": "nsga3"}, "search.sampler = 'nsga3'"),
        ({"speedup": 0.9}, "search.speedup = 0.9"),
        (
            {"sampler": "cma", "population": 4},
            "search.population is 4, but CMA-ES needs at least 5",
        ),
    ],
)
def test_impossible_searches_are_refused(table: dict[str, Any], message: str) -> None:
    document = {"study": {"name": "s"}, "model": {"path": "m"}, "task": {"name": "digits"}}
    with pytest.raises(ConfigError, match=message):
        StudyConfig.of(document | {"search": table})


def test_a_trial_of_a_user_that_is_interrupted_is_measured_by_the_next_run(
    factory: StudyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with factory() as session:
        wide = {name: d.high for name, d in session.schedule.view().distributions.items()}
        session.study.enqueue_trial(wide, user_attrs={"note": "mine"})

        def interrupt(*_: object) -> NoReturn:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Evaluator, "measure", interrupt)
            with pytest.raises(KeyboardInterrupt):
                search(session)
        search(session)
        users = [t for t in session.study.trials if t.user_attrs.get("note") == "mine"]
        assert [trial.state for trial in users] == [TrialState.FAIL, TrialState.COMPLETE]
        assert users[0].system_attrs["void"] == "withdrawn"
        assert users[1].params == wide
        assert users[1].user_attrs["repeated"] == users[0].number
        assert session.schedule.finished


def test_trials_that_users_enqueue_at_the_end_are_measured(factory: StudyFactory) -> None:
    """In the last generation, whose slots are queued before them; and after the search."""
    with factory() as session:
        wide = {name: d.high for name, d in session.schedule.view().distributions.items()}
        measured: list[int] = []

        def enqueue(_: SearchSession, trial: TrialRecord) -> None:
            measured.append(trial.number)
            if len(measured) == 2 * 2 * 5 - 1:  # all slots are queued
                session.study.enqueue_trial(wide)

        search(session, Callbacks(on_trial=enqueue))
        name = next(iter(wide))
        session.study.enqueue_trial(wide | {name: "narrow"})
        session.study.enqueue_trial(wide | {name: 1})
        search(session)
        users = [t for t in session.study.trials if t.user_attrs.get("kind") == "user"]
        complete, failed = TrialState.COMPLETE, TrialState.FAIL
        assert [trial.state for trial in users] == [complete, failed, complete]
        assert session.schedule.finished
