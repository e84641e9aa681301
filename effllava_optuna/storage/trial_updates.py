"""Writing trials into Optuna's tables, with one statement for each table.

Optuna reads the trial again for each row that it writes.
"""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite

from effllava_optuna.storage.storage_internals import rdb_models
from effllava_optuna.storage.trial_queries import (
    PARAMS,
    STEPS,
    STUDIES,
    STUDY_SYSTEM_ATTRS,
    SYSTEM_ATTRS,
    TRIALS,
    USER_ATTRS,
    VALUES,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

_STUDY: Any = sql.bindparam("study")
_LOCK_STUDY = sql.select(STUDIES.c.study_id).where(STUDIES.c.study_id == _STUDY).with_for_update()
_COUNT_TRIALS = sql.select(sql.func.count()).where(TRIALS.c.study_id == _STUDY)
_START, _END = (
    sql.update(TRIALS).where(TRIALS.c.trial_id == sql.bindparam("trial"), TRIALS.c.state.in_(old))
    for old in ([TrialState.WAITING], [TrialState.WAITING, TrialState.RUNNING])
)
_INSERT: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@functools.cache
def _upsert(dialect: str, table: Any, keys: tuple[str, ...], changed: tuple[str, ...]) -> Any:
    insert = _INSERT[dialect](table)
    return insert.on_conflict_do_update(
        index_elements=[table.c[key] for key in keys],
        set_={name: insert.excluded[name] for name in changed},
    )


def upsert_attrs(
    connection: Connection, table: Any, trial_id: int, attrs: Mapping[str, Any]
) -> None:
    """Write attributes of a trial over the stored ones."""
    if attrs:
        insert = _upsert(connection.dialect.name, table, ("trial_id", "key"), ("value_json",))
        connection.execute(insert, _attr_rows("trial_id", trial_id, attrs))


def upsert_study_attrs(connection: Connection, study_id: int, attrs: Mapping[str, Any]) -> None:
    """Write system attributes of a study over the stored ones."""
    if attrs:
        keys = ("study_id", "key")
        insert = _upsert(connection.dialect.name, STUDY_SYSTEM_ATTRS, keys, ("value_json",))
        connection.execute(insert, _attr_rows("study_id", study_id, attrs))


def _attr_rows(id_column: str, id_: int, attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {id_column: id_, "key": key, "value_json": json.dumps(value)}
        for key, value in attrs.items()
    ]


def upsert_values(connection: Connection, trial_id: int, values: Sequence[float]) -> None:
    """Write the values of a trial over the stored ones."""
    if len(values):
        keys, changed = ("trial_id", "objective"), ("value", "value_type")
        insert = _upsert(connection.dialect.name, VALUES, keys, changed)
        connection.execute(insert, _value_rows(trial_id, values))


def _value_rows(trial_id: int, values: Sequence[float]) -> list[dict[str, Any]]:
    rows = []
    for objective, value in enumerate(values):
        stored, kind = rdb_models.TrialValueModel.value_to_stored_repr(value)
        rows.append(
            {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}
        )
    return rows


def set_state(connection: Connection, trial_id: int, state: TrialState) -> bool:
    """Write the state of a trial, and the time of the change.

    Returns:
        Whether the change is possible: only a WAITING trial starts, and a trial that has ended
        keeps its state.
    """
    change: dict[str, Any] = {"state": state}
    if state == TrialState.RUNNING:
        change["datetime_start"] = _utc(datetime.now())
    if state.is_finished():
        change["datetime_complete"] = _utc(datetime.now())
    update = _START if state == TrialState.RUNNING else _END
    return connection.execute(update.values(change), {"trial": trial_id}).rowcount == 1


def lock_study(connection: Connection, study_id: int) -> None:
    """Keep other processes from creating trials of a study until the transaction ends.

    Raises:
        KeyError: There is no such study.
    """
    if connection.execute(_LOCK_STUDY, {"study": study_id}).first() is None:
        raise KeyError(rdb_models.NOT_FOUND_MSG)


def insert_trial(connection: Connection, study_id: int, template: FrozenTrial) -> tuple[int, int]:
    """Insert a trial into a study that this transaction has locked.

    Returns:
        Id and number of the trial.
    """
    number: int = connection.execute(_COUNT_TRIALS, {"study": study_id}).scalar_one()
    row = {
        "study_id": study_id,
        "number": number,
        "state": template.state,
        "datetime_start": _utc(template.datetime_start),
        "datetime_complete": _utc(template.datetime_complete),
    }
    key: Any = connection.execute(sql.insert(TRIALS), row).inserted_primary_key
    trial_id = int(key[0])
    for table, rows in (
        (PARAMS, _param_rows(trial_id, template)),
        (VALUES, _value_rows(trial_id, template.values or [])),
        (STEPS, _step_rows(trial_id, template.intermediate_values)),
        (USER_ATTRS, _attr_rows("trial_id", trial_id, template.user_attrs)),
        (SYSTEM_ATTRS, _attr_rows("trial_id", trial_id, template.system_attrs)),
    ):
        if rows:
            connection.execute(sql.insert(table), rows)
    return trial_id, number


def _param_rows(trial_id: int, template: FrozenTrial) -> list[dict[str, Any]]:
    return [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": template.distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(template.distributions[name]),
        }
        for name, value in template.params.items()
    ]


def _step_rows(trial_id: int, intermediate_values: Mapping[int, float]) -> list[dict[str, Any]]:
    convert = rdb_models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
    rows = []
    for step, value in intermediate_values.items():
        stored, kind = convert(value)
        rows.append(
            {
                "trial_id": trial_id,
                "step": step,
                "intermediate_value": stored,
                "intermediate_value_type": kind,
            }
        )
    return rows


def _utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.astimezone(UTC).replace(tzinfo=None)
