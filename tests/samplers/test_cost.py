"""What a trial costs the storage: a handful of writing transactions, however many genes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from effllava_optuna.samplers import write_user_attrs
from effllava_optuna.study.storage import open_storage
from tests.samplers.toy import DIRECTIONS, measure, sampler_of, suggest, toy_space


def count_writes(engine: Any) -> list[int]:
    """Count the transactions that change something, in the first item of the list."""
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
    writes = count_writes(storage._backend.engine)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        values = measure(suggest(trial, space))
        found = {"accuracy": 0.5, "expected": 0.4, "log_probability": -1.0, "hits": "0101"}
        write_user_attrs(study, trial._trial_id, found)
        return values

    for _ in range(3):
        sampler.write_due(study)
        study.optimize(objective, n_trials=8)
    assert len(study.trials) == 24
    assert 4 * 24 <= writes[0] <= 6 * 24


def test_attributes_are_stored_everywhere(storage_url: str) -> None:
    study = optuna.create_study(storage=open_storage(storage_url, create=True))
    trial = study.ask()
    write_user_attrs(study, trial._trial_id, {"a": 1, "b": [1.5, None], "c": "text"})
    write_user_attrs(study, trial._trial_id, {"a": 2})
    assert study.trials[0].user_attrs == {"a": 2, "b": [1.5, None], "c": "text"}
    study.tell(trial, 0.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        write_user_attrs(study, trial._trial_id, {"a": 3})
