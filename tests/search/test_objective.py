"""One trial at a time: what somebody else does to a running trial does not end a search."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from optuna.trial import TrialState

from effllava_optuna.cli.commands.report_commands import document_of
from effllava_optuna.cli.rendering import render_report
from effllava_optuna.samplers import _lease, storage_of, trial_id_of
from effllava_optuna.search.evaluator import Evaluator
from effllava_optuna.search.runner import conclude, search
from effllava_optuna.tasks import Digits
from tests.study_fixtures import StudyFactory

if TYPE_CHECKING:
    from collections.abc import Callable

    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import LoadedModel

VALUES = {TrialState.COMPLETE: [0.25, 9.0], TrialState.PRUNED: None, TrialState.FAIL: None}


@pytest.fixture(scope="module")
def opened(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> StudyFactory:
    task = Digits(proxy=16, validation=8, test=8)
    place = tmp_path_factory.mktemp("artifacts")
    return StudyFactory(tiny, task, place, epochs=1, generations=2, population=4)


def end_running(session: SearchSession, state: TrialState) -> None:
    """End the running trial as another process, the dashboard or ``optuna tell`` does."""
    (trial,) = session.study.get_trials(states=(TrialState.RUNNING,))
    storage_of(session.study).set_trial_state_values(trial_id_of(trial), state, VALUES[state])


def interrupted(
    session: SearchSession, end: Callable[[], object], *, raises: Exception | None = None
) -> Callable[..., Any]:
    """Return a measurement during whose third call something else happens."""
    calls, measure = itertools.count(), Evaluator.measure

    def measured(self: Evaluator, *rest: Any) -> Any:
        if next(calls) == 2:
            end()
            if raises is not None:
                raise raises
        return measure(self, *rest)

    return measured


@pytest.mark.parametrize("state", VALUES)
@pytest.mark.parametrize("raises", [None, RuntimeError("out of memory")])
def test_a_trial_that_somebody_else_ended_does_not_stop_the_search(
    opened: StudyFactory,
    monkeypatch: pytest.MonkeyPatch,
    state: TrialState,
    raises: Exception | None,
) -> None:
    with opened() as session:
        end = interrupted(session, lambda: end_running(session, state), raises=raises)
        monkeypatch.setattr(Evaluator, "measure", end)
        search(session)
        trials = session.study.get_trials()
        assert session.schedule.finished
        assert trials[2].state == state
        assert trials[2].values == VALUES[state]
        repeated = 1 if state == TrialState.FAIL else 0
        assert [t.state for t in trials if t.number != 2] == [TrialState.COMPLETE] * (7 + repeated)
        conclude(session)
        assert render_report(document_of(session.study), "FILE")


def test_an_interruption_is_not_hidden_by_a_trial_that_somebody_else_ended(
    opened: StudyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        end_running(session, TrialState.FAIL)
        raise KeyboardInterrupt

    with opened() as session:
        monkeypatch.setattr(Evaluator, "measure", interrupted(session, interrupt))
        with pytest.raises(KeyboardInterrupt):
            search(session)


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.PRUNED])
def test_a_trial_that_somebody_else_ends_before_it_is_measured_does_not_stop_the_search(
    opened: StudyFactory, monkeypatch: pytest.MonkeyPatch, state: TrialState
) -> None:
    """Between the moment it is taken from the queue and the moment it has an owner."""
    write, calls = _lease.write_owner, itertools.count()

    def written(*arguments: Any) -> None:
        if next(calls) == 2:
            end_running(session, state)
        write(*arguments)

    monkeypatch.setattr("effllava_optuna.samplers._sampler.write_owner", written)
    with opened() as session:
        search(session)
        assert session.schedule.finished
        assert session.study.get_trials()[2].state == state


def test_queued_trials_that_somebody_else_ended_are_queued_again(opened: StudyFactory) -> None:
    with opened() as session:
        session.sampler.queue_due_trials(session.study)
        for trial in session.study.get_trials(states=(TrialState.WAITING,))[:2]:
            storage_of(session.study).set_trial_state_values(trial_id_of(trial), TrialState.FAIL)
        search(session)
        complete = session.study.get_trials(states=(TrialState.COMPLETE,))
        assert len(complete) == 8
