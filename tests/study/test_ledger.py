from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from optuna.trial import TrialState

from effllava_optuna.study import storage
from effllava_optuna.study.ledger import Ledger, Publication

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.storages import BaseStorage


@pytest.fixture
def opened(tmp_path: Path) -> BaseStorage:
    return storage.open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)


def test_what_is_published_is_made_once(opened: BaseStorage) -> None:
    ledger = Ledger(opened, "s")
    made = []

    def make() -> Publication:
        made.append(1)
        return Publication(0.5, {"fact": [1, 2]}, None)

    first = ledger.publish(0, make)
    again = Ledger(opened, "s").publish(0, make)
    assert made == [1]
    assert first.number == again.number
    assert again.user_attrs["fact"] == [1, 2]
    assert again.params == {"epoch": 0, "attempt": 0}


def test_threads_that_want_the_same_epoch_get_the_same_one(opened: BaseStorage) -> None:
    ledger = Ledger(opened, "s")
    made, found = [], []
    gate = threading.Barrier(3)

    def make() -> Publication:
        made.append(1)
        return Publication(0.5, {}, None)

    def want() -> None:
        gate.wait()
        found.append(ledger.publish(0, make).number)

    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert made == [1]
    assert len(found) == 3
    assert len(set(found)) == 1


def test_an_attempt_that_fails_is_followed_by_another(opened: BaseStorage) -> None:
    ledger = Ledger(opened, "s")

    def broken() -> Publication:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        ledger.publish(0, broken)
    assert ledger.epochs() == []
    found = ledger.publish(0, lambda: Publication(0.5, {}, None))
    assert found.params == {"epoch": 0, "attempt": 1}


def test_an_attempt_whose_process_died_is_taken_over(opened: BaseStorage) -> None:
    ledger = Ledger(opened, "s")
    claim = ledger._claim(0)
    assert claim is not None
    host = claim.user_attrs["owner"].rsplit(":", 2)[0]
    opened.set_trial_user_attr(claim._trial_id, "owner", f"{host}:999999:1.00")
    found = ledger.publish(0, lambda: Publication(0.5, {}, None))
    states = [trial.state for trial in ledger.study.get_trials(deepcopy=False)]
    assert found.number == 1
    assert states == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_leader_that_was_taken_over_publishes_nothing(opened: BaseStorage) -> None:
    """It was only slow: meanwhile its lease ran out, and somebody else has published."""
    ledger = Ledger(opened, "s")

    def slow() -> Publication:
        (mine,) = ledger.study.get_trials(deepcopy=False)
        opened.set_trial_state_values(mine._trial_id, TrialState.FAIL)
        Ledger(opened, "s").publish(0, lambda: Publication(0.9, {"by": "another"}, None))
        return Publication(0.1, {"by": "the slow one"}, None)

    found = ledger.publish(0, slow)
    assert found.user_attrs["by"] == "another"
    states = [trial.state for trial in ledger.study.get_trials(deepcopy=False)]
    assert states == [TrialState.FAIL, TrialState.COMPLETE]


def test_epochs_are_read_up_to_the_first_gap(opened: BaseStorage) -> None:
    ledger = Ledger(opened, "s")
    first, third = (
        ledger.publish(epoch, lambda: Publication(0.5, {}, None)).number for epoch in (0, 2)
    )
    assert [attempt.number for attempt in ledger.epochs()] == [first]
    found = ledger.published(2)
    assert found is not None
    assert found.number == third
    assert ledger.published(1) is None
