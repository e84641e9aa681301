"""The finalists of a study are selected once, and stored before validation is opened."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from effllava_optuna.policy import best_and_spread, finalist_merit, front_of
from effllava_optuna.report import study_document
from effllava_optuna.search import final_selection
from effllava_optuna.search.evaluator import Evaluator
from effllava_optuna.search.final_selection import FinalSelection, study_finalists
from effllava_optuna.search.runner import search
from effllava_optuna.storage.names import CHOSEN, FINALISTS
from effllava_optuna.storage.study_facts import read_study_facts
from effllava_optuna.storage.trial_records import effective_records
from effllava_optuna.tasks import Digits
from tests.study_fixtures import StudyFactory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from effllava_optuna.policy import Policy, TrialRecord
    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import LoadedModel

COUNT = 2


@pytest.fixture
def session(tiny: LoadedModel, tmp_path: Any) -> Iterator[SearchSession]:
    """A study whose search is over."""
    task = Digits(proxy=16, validation=8, test=8)
    factory = StudyFactory(tiny, task, tmp_path, epochs=1, generations=3, population=8)
    factory.finalists = COUNT
    with factory(keep_ratio=0.5) as session:
        search(session)
        yield session


def front_of_study(session: SearchSession) -> list[TrialRecord]:
    return front_of(effective_records(session.study))


def reported(session: SearchSession) -> list[int]:
    """Return the trials that the report of a study shows."""
    document = study_document(read_study_facts(session.study))
    return [row["trial"] for row in document["front"]]


def test_the_report_before_the_end_shows_the_finalists_to_come(session: SearchSession) -> None:
    before = reported(session)
    FinalSelection(session).run()
    assert reported(session) == before
    expected = [trial.number for trial in study_finalists(session, front_of_study(session))]
    assert session.study.user_attrs[FINALISTS] == expected == before


def test_a_resumed_selection_has_the_stored_finalists(session: SearchSession) -> None:
    """As if another version, which selects others, was killed before the results were stored."""
    stored = [trial.number for trial in front_of_study(session)[::-1][:COUNT]]
    session.study.set_user_attr(FINALISTS, stored)
    results = FinalSelection(session).run()
    assert [row["trial"] for row in results["front"]] == stored
    assert session.study.user_attrs[FINALISTS] == stored
    assert results["chosen"]["trial"] in stored


def test_an_older_version_that_had_chosen_keeps_its_finalists(
    session: SearchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest = front_of_study(session)[-1:]
    monkeypatch.setattr(final_selection, "study_finalists", lambda *_: fastest)
    older = [trial.number for trial in best_and_spread(front_of_study(session), COUNT)]
    session.study.set_user_attr(CHOSEN, older[0])
    results = FinalSelection(session).run()
    assert [row["trial"] for row in results["front"]] == older
    assert len(older) == COUNT


def test_a_study_whose_trials_all_miss_the_latest_budget_concludes(
    session: SearchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the latest correction had moved all of them out of it."""
    before = reported(session)
    search = session.config.search.model_copy(update={"keep_ratio": None, "latency_ms": 1e-9})
    config = session.config.model_copy(update={"search": search})
    monkeypatch.setattr(type(session), "config", config)
    results = FinalSelection(session).run()
    assert [row["trial"] for row in results["front"]] == before
    assert results["chosen"]["trial"] in before


@pytest.fixture
def tied(tiny: LoadedModel, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A study with a budget whose two finalists tie on validation; the better one is too slow."""
    task = Digits(proxy=16, validation=8, test=8)
    factory = StudyFactory(tiny, task, tmp_path, epochs=1, generations=3, population=8)
    factory.finalists = COUNT
    with factory(speedup=1.05) as session:
        search(session)
        best, other = study_finalists(session, front_of_study(session))

        def time_networks(
            _: Evaluator, networks: Any, seconds: float, progress: Callable[[float], None]
        ) -> list[float]:
            return [latency_of(policy) for _, policy in networks]

        def latency_of(policy: Policy) -> float:
            if policy.keep_ratio == 1:
                return 100.0
            return {best.widths: 99.0, other.widths: 50.0}.get(policy.widths, 75.0)

        monkeypatch.setattr(Evaluator, "time_networks", time_networks)
        monkeypatch.setattr(final_selection, "finalist_merit", merit_of_ties)
        yield session, best.number, other.number


def merit_of_ties(_: float, quality: float, *, within_budget: bool) -> Any:
    """Return the merit of a finalist as if all of them were equally accurate."""
    return finalist_merit(0.5, quality, within_budget=within_budget)


def test_among_equals_the_finalist_that_meets_the_budget_as_timed_is_chosen(tied: Any) -> None:
    session, best, other = tied
    results = FinalSelection(session).run()
    assert results["chosen"]["trial"] == session.study.user_attrs[CHOSEN] == other
    assert results["chosen"]["speedup_measured"] == pytest.approx(2.0)
    assert {row["trial"]: row["latency_ms_measured"] for row in results["front"]} == {
        best: 99.0, other: 50.0,
    }  # fmt: skip


def test_a_stored_choice_stays_on_resume(tied: Any) -> None:
    session, best, _ = tied
    session.study.set_user_attr(FINALISTS, reported(session))
    session.study.set_user_attr(CHOSEN, best)
    assert FinalSelection(session).run()["chosen"]["trial"] == best


def test_the_limit_of_a_trial_is_none_of_the_final_selection(session: SearchSession) -> None:
    """The dense model and the finalists may take longer than a trial, which is not repeated."""
    config = session.config
    search_settings = config.search.model_copy(update={"timeout": 1e-9})
    short = config.model_copy(update={"search": search_settings})
    inputs = replace(session.evaluator.inputs, config=short)
    limited = replace(session, evaluator=replace(session.evaluator, inputs=inputs))
    assert FinalSelection(limited).run()["dense"]["accuracy_test"] >= 0
