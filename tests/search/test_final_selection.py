"""The finalists of a study are selected once, and stored before validation is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from effllava_optuna.policy import best_and_spread, front_of
from effllava_optuna.report import study_document
from effllava_optuna.search import final_selection
from effllava_optuna.search.final_selection import FinalSelection, study_finalists
from effllava_optuna.search.runner import search
from effllava_optuna.storage.names import CHOSEN, FINALISTS
from effllava_optuna.storage.study_facts import read_study_facts
from effllava_optuna.storage.trial_records import effective_records
from effllava_optuna.tasks import Digits
from tests.study_fixtures import StudyFactory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.policy import TrialRecord
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
