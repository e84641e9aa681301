"""The transactions of a trial: at most six, for any number of genes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from effllava_optuna.samplers import write_user_attrs
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.storage_internals import backend_of
from tests.samplers.toy import DIRECTIONS, measure, sampler_of, suggest, toy_space


def count_writes(engine: Any) -> list[int]:
    """Return a list whose first item counts the transactions that write."""
    count, changed = [0], [False]

    @sqlalchemy.event.listens_for(engine, "before_cursor_execute")
    def execute(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        changed[0] |= statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE"))

    @sqlalchemy.event.listens_for(engine, "commit")
    def commit(connection: Any) -> None:
        count[0] += changed[0]
        changed[0] = False

    return count


def test_a_trial_of_64_genes_takes_at_most_six_commits(tmp_path: Path) -> None:
    storage: Any = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    space = toy_space(genes=64, budget=300.0)
    sampler = sampler_of(space, population_size=8)
    study = optuna.create_study(storage=storage, directions=DIRECTIONS, sampler=sampler)
    writes = count_writes(backend_of(storage).engine)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        values = measure(suggest(trial, space))
        attrs = {"accuracy": 0.5, "expected": 0.4, "log_probability": -1.0, "hits": "0101"}
        write_user_attrs(study, trial, attrs)
        return values

    for _ in range(3):
        sampler.queue_due_trials(study)
        study.optimize(objective, n_trials=8)
    assert len(study.trials) == 24
    assert 4 * 24 <= writes[0] <= 6 * 24


def test_every_storage_stores_attributes(storage_url: str) -> None:
    study = optuna.create_study(storage=open_storage(storage_url, create=True))
    trial = study.ask()
    write_user_attrs(study, trial, {"a": 1, "b": [1.5, None], "c": "text"})
    write_user_attrs(study, trial, {"a": 2})
    assert study.trials[0].user_attrs == {"a": 2, "b": [1.5, None], "c": "text"}
    study.tell(trial, 0.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        write_user_attrs(study, trial, {"a": 3})
