"""Trials as rows of Optuna's tables: statements that are built once, for SQLite and PostgreSQL.

Optuna makes an object of each row that it reads, and looks at a trial again for each row that it
writes. Here a trial is read by two statements, and what is written into a table by one.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from optuna.distributions import (
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from sqlalchemy import Connection

_MOST = 500  # ids in a statement: databases bear so many thousand
_STUDIES, _TRIALS, _PARAMS, _VALUES, _STEPS, _USER, _SYSTEM = (
    model.__table__
    for model in (
        models.StudyModel,
        models.TrialModel,
        models.TrialParamModel,
        models.TrialValueModel,
        models.TrialIntermediateValueModel,
        models.TrialUserAttributeModel,
        models.TrialSystemAttributeModel,
    )
)
USER_ATTRS, SYSTEM_ATTRS = _USER, _SYSTEM
_PARAM, _VALUE, _STEP, _USER_ATTR, _SYSTEM_ATTR = range(5)


def _part(kind: int, table: Any, at: str, name: str | None, text: str, number: str | None) -> Any:
    def column(name: str | None, type_: Any) -> Any:
        return sql.cast(sql.null() if name is None else table.c[name], type_)

    return sql.select(
        table.c.trial_id,
        sql.literal_column(str(kind)),
        table.c[at],
        column(name, sql.Text),
        column(text, sql.Text),
        column(number, sql.Float(53)),
    )


_PARTS = (
    _part(_PARAM, _PARAMS, "param_id", "param_name", "distribution_json", "param_value"),
    _part(_VALUE, _VALUES, "objective", None, "value_type", "value"),
    _part(_STEP, _STEPS, "step", None, "intermediate_value_type", "intermediate_value"),
    _part(_USER_ATTR, _USER, "trial_user_attribute_id", "key", "value_json", None),
    _part(_SYSTEM_ATTR, _SYSTEM, "trial_system_attribute_id", "key", "value_json", None),
)
_IDS: Any = sql.bindparam("ids", expanding=True)
_TRIAL: Any = sql.bindparam("trial")
_DETAILS = sql.union_all(*(part.where(part.selected_columns[0].in_(_IDS)) for part in _PARTS))
_DETAILS_OF_ONE = sql.union_all(
    *(part.where(part.selected_columns[0] == _TRIAL) for part in _PARTS)
)
_HEAD = sql.select(
    *(_TRIALS.c[name] for name in ("trial_id", "number", "state")),
    *(_TRIALS.c[f"datetime_{moment}"] for moment in ("start", "complete")),
)
_ONE = _HEAD.where(_TRIALS.c.trial_id == _TRIAL)
_SOME = _HEAD.where(
    _TRIALS.c.study_id == sql.bindparam("study"),
    sql.or_(
        _TRIALS.c.trial_id > sql.bindparam("after"),
        _TRIALS.c.trial_id.in_(_IDS),
    ),
).order_by(_TRIALS.c.trial_id)
_STUDY = sql.select(_STUDIES.c.study_id).where(_STUDIES.c.study_id == sql.bindparam("study"))
_STUDY_LOCKED = _STUDY.with_for_update()
_STATE = sql.select(_TRIALS.c.state).where(_TRIALS.c.trial_id == _TRIAL)
_COUNT = sql.select(sql.func.count()).where(_TRIALS.c.study_id == sql.bindparam("study"))
_KNOWN = (
    sql.select(_PARAMS.c.distribution_json)
    .join(_TRIALS, _TRIALS.c.trial_id == _PARAMS.c.trial_id)
    .where(
        _TRIALS.c.study_id == sql.bindparam("study"),
        _PARAMS.c.param_name == sql.bindparam("name"),
    )
    .limit(1)
)
_BEGIN, _END = (
    sql.update(_TRIALS).where(_TRIALS.c.trial_id == _TRIAL, _TRIALS.c.state.in_(before))
    for before in ([TrialState.WAITING], [TrialState.WAITING, TrialState.RUNNING])
)
_INSERT: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@functools.cache
def _upsert(dialect: str, table: Any, keys: tuple[str, ...], changed: tuple[str, ...]) -> Any:
    insert = _INSERT[dialect](table)
    return insert.on_conflict_do_update(
        index_elements=[table.c[key] for key in keys],
        set_={name: insert.excluded[name] for name in changed},
    )


def heads(
    connection: Connection, study: int, after: int, included: Iterable[int] = ()
) -> Sequence[Any]:
    """Read what the trials' own rows say, by id.

    Args:
        connection: In a transaction.
        study: Of the trials.
        after: Trials with higher ids are read,
        included: and these.

    Raises:
        KeyError: There is no such study.
    """
    ids = set(included)
    few = len(ids) <= _MOST
    told = {"study": study, "after": after if few else -1, "ids": list(ids) if few else []}
    found = connection.execute(_SOME, told).all()
    if not found and connection.execute(_STUDY, {"study": study}).first() is None:
        raise KeyError(models.NOT_FOUND_MSG)
    return found if few else [row for row in found if row[0] > after or row[0] in ids]


def head(connection: Connection, trial: int) -> Any:
    """Read what one trial's own row says.

    Raises:
        KeyError: There is none.
    """
    found = connection.execute(_ONE, {"trial": trial}).first()
    if found is None:
        raise KeyError(models.NOT_FOUND_MSG)
    return found


def read(connection: Connection, heads: Sequence[Any]) -> list[FrozenTrial]:
    """Read all else of the trials with these heads."""
    details: defaultdict[int, list[Any]] = defaultdict(list)
    for start in range(0, len(heads), _MOST):
        ids = [row[0] for row in heads[start : start + _MOST]]
        one = len(ids) == 1
        query, told = (_DETAILS_OF_ONE, {"trial": ids[0]}) if one else (_DETAILS, {"ids": ids})
        for trial, *detail in connection.execute(query, told).all():
            details[trial].append(detail)
    return [_trial(row, details[row[0]]) for row in heads]


_distribution = functools.cache(json_to_distribution)  # a study has a few, and millions of copies


def _trial(head: Any, details: list[list[Any]]) -> FrozenTrial:
    key, number, state, start, complete = head
    parts: tuple[list[Any], ...] = ([], [], [], [], [])
    for kind, at, *rest in details:
        parts[kind].append((at, *rest))
    for part in parts:
        part.sort(key=lambda row: row[0])
    params, values, steps, user, system = parts
    distributions = {name: _distribution(told) for _, name, told, _ in params}
    return FrozenTrial(
        number=number,
        state=state,
        value=None,
        values=[_number(kind, stored) for _, _, kind, stored in values] or None,
        datetime_start=_local(start),
        datetime_complete=_local(complete),
        params={
            name: distributions[name].to_external_repr(stored) for _, name, _, stored in params
        },
        distributions=distributions,
        user_attrs={name: json.loads(told) for _, name, told, _ in user},
        system_attrs={name: json.loads(told) for _, name, told, _ in system},
        intermediate_values={step: _number(kind, stored) for step, _, kind, stored in steps},
        trial_id=key,
    )


_NAMED = {"INF_POS": float("inf"), "INF_NEG": float("-inf"), "NAN": float("nan")}


def _number(kind: str, stored: float | None) -> float:
    return _NAMED[kind] if stored is None else stored


def _local(time: datetime | None) -> datetime | None:
    """Give what is kept in UTC in the time of this place, as Optuna does."""
    return None if time is None else time.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def _utc(time: datetime | None) -> datetime | None:
    return None if time is None else time.astimezone(UTC).replace(tzinfo=None)


def check_updatable(connection: Connection, trial: int) -> None:
    """Refuse to change a trial that cannot be.

    Raises:
        KeyError: There is none.
        UpdateFinishedTrialError: It has ended.
    """
    state: TrialState | None = connection.execute(_STATE, {"trial": trial}).scalar()
    if state is None:
        raise KeyError(models.NOT_FOUND_MSG)
    if state.is_finished():
        raise UpdateFinishedTrialError(f"Trial#{trial} has already finished.")


def put_attrs(connection: Connection, table: Any, trial: int, attrs: Mapping[str, Any]) -> None:
    """Write attributes of a trial over those that it has."""
    if attrs:
        insert = _upsert(connection.dialect.name, table, ("trial_id", "key"), ("value_json",))
        connection.execute(insert, list(_attr_rows(trial, attrs)))


def _attr_rows(trial: int, attrs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, value in attrs.items():
        yield {"trial_id": trial, "key": key, "value_json": json.dumps(value)}


def put_study_attrs(connection: Connection, study: int, attrs: Mapping[str, Any]) -> None:
    """Write system attributes of a study over those that it has."""
    if attrs:
        table = models.StudySystemAttributeModel.__table__
        insert = _upsert(connection.dialect.name, table, ("study_id", "key"), ("value_json",))
        connection.execute(
            insert,
            [
                {"study_id": study, "key": key, "value_json": json.dumps(value)}
                for key, value in attrs.items()
            ],
        )


def put_values(connection: Connection, trial: int, values: Sequence[float]) -> None:
    """Write the values of a trial over those that it has."""
    insert = _upsert(
        connection.dialect.name, _VALUES, ("trial_id", "objective"), ("value", "value_type")
    )
    if len(values):
        connection.execute(insert, _value_rows(trial, values))


def _value_rows(trial: int, values: Sequence[float]) -> list[dict[str, Any]]:
    rows = []
    for objective, value in enumerate(values):
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        rows.append(
            {"trial_id": trial, "objective": objective, "value": stored, "value_type": kind}
        )
    return rows


def move(connection: Connection, trial: int, state: TrialState) -> bool:
    """Give a trial a state, and the time at which it got there.

    Returns:
        Whether it was in a state from which that is possible: only what waits begins to run, and
        what has ended stays as it is.
    """
    change: dict[str, Any] = {"state": state}
    if state == TrialState.RUNNING:
        change["datetime_start"] = _utc(datetime.now())
    if state.is_finished():
        change["datetime_complete"] = _utc(datetime.now())
    query = _BEGIN if state == TrialState.RUNNING else _END
    return connection.execute(query.values(change), {"trial": trial}).rowcount == 1


def check_compatible(
    connection: Connection, study: int, distributions: Mapping[str, BaseDistribution]
) -> None:
    """Refuse a distribution that differs from the one that a study has under that name.

    Raises:
        ValueError: One does.
    """
    for name, distribution in distributions.items():
        told = connection.execute(_KNOWN, {"study": study, "name": name}).scalar()
        if told is not None:
            check_distribution_compatibility(_distribution(told), distribution)


def lock_study(connection: Connection, study: int) -> None:
    """Let nobody else create a trial before the transaction ends.

    Raises:
        KeyError: There is no such study.
    """
    if connection.execute(_STUDY_LOCKED, {"study": study}).first() is None:
        raise KeyError(models.NOT_FOUND_MSG)


def create(connection: Connection, study: int, template: FrozenTrial) -> tuple[int, int]:
    """Write a trial; whoever does has locked the study.

    Returns:
        Its id and its number.
    """
    number: int = connection.execute(_COUNT, {"study": study}).scalar_one()
    told = {
        "study_id": study,
        "number": number,
        "state": template.state,
        "datetime_start": _utc(template.datetime_start),
        "datetime_complete": _utc(template.datetime_complete),
    }
    key: Any = connection.execute(sql.insert(_TRIALS), told).inserted_primary_key
    trial = int(key[0])
    params = [
        {
            "trial_id": trial,
            "param_name": name,
            "param_value": template.distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(template.distributions[name]),
        }
        for name, value in template.params.items()
    ]
    steps = []
    for step, value in template.intermediate_values.items():
        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
        place = {"trial_id": trial, "step": step}
        steps.append(place | {"intermediate_value": stored, "intermediate_value_type": kind})
    for table, rows in (
        (_PARAMS, params),
        (_VALUES, _value_rows(trial, template.values or [])),
        (_STEPS, steps),
        (_USER, list(_attr_rows(trial, template.user_attrs))),
        (_SYSTEM, list(_attr_rows(trial, template.system_attrs))),
    ):
        if rows:
            connection.execute(sql.insert(table), rows)
    return trial, number
