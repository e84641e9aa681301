"""Reading trials from Optuna's tables: statements that are built once, for SQLite and PostgreSQL.

Optuna creates an object for each row that it reads. Here a trial is read with two statements: one
for its own row, and one for all rows of the other tables that belong to it.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from optuna.distributions import check_distribution_compatibility, json_to_distribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from effllava_optuna.storage.storage_internals import rdb_models

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from sqlalchemy import Connection

STUDIES, TRIALS, PARAMS, VALUES, STEPS, USER_ATTRS, SYSTEM_ATTRS, STUDY_SYSTEM_ATTRS = (
    model.__table__
    for model in (
        rdb_models.StudyModel,
        rdb_models.TrialModel,
        rdb_models.TrialParamModel,
        rdb_models.TrialValueModel,
        rdb_models.TrialIntermediateValueModel,
        rdb_models.TrialUserAttributeModel,
        rdb_models.TrialSystemAttributeModel,
        rdb_models.StudySystemAttributeModel,
    )
)
_MAX_IDS = 500  # in a statement; databases accept a few thousand
_PARAM, _VALUE, _STEP, _USER_ATTR, _SYSTEM_ATTR = range(5)  # kinds of detail rows


def _detail_query(
    kind: int, table: Any, order: str, name: str | None, text: str, number: str | None
) -> Any:
    """Select the rows of a table in the columns that all detail queries share.

    Args:
        kind: Kind of the rows, returned with each of them.
        table: The table.
        order: Column by which the rows of a trial are sorted.
        name: Column of the name; None if the rows have none.
        text: Column of the text value.
        number: Column of the numeric value; None if the rows have none.
    """

    def column(name: str | None, type_: Any) -> Any:
        return sql.cast(sql.null() if name is None else table.c[name], type_)

    return sql.select(
        table.c.trial_id,
        sql.literal_column(str(kind)),
        table.c[order],
        column(name, sql.Text),
        column(text, sql.Text),
        column(number, sql.Float(53)),
    )


_DETAIL_QUERIES = (
    _detail_query(_PARAM, PARAMS, "param_id", "param_name", "distribution_json", "param_value"),
    _detail_query(_VALUE, VALUES, "objective", None, "value_type", "value"),
    _detail_query(_STEP, STEPS, "step", None, "intermediate_value_type", "intermediate_value"),
    _detail_query(_USER_ATTR, USER_ATTRS, "trial_user_attribute_id", "key", "value_json", None),
    _detail_query(
        _SYSTEM_ATTR, SYSTEM_ATTRS, "trial_system_attribute_id", "key", "value_json", None
    ),
)
_IDS: Any = sql.bindparam("ids", expanding=True)
_TRIAL: Any = sql.bindparam("trial")
_STUDY: Any = sql.bindparam("study")
_SELECT_DETAILS = sql.union_all(
    *(query.where(query.selected_columns[0].in_(_IDS)) for query in _DETAIL_QUERIES)
)
_SELECT_DETAILS_OF_ONE = sql.union_all(
    *(query.where(query.selected_columns[0] == _TRIAL) for query in _DETAIL_QUERIES)
)
_SELECT_ROW = sql.select(
    *(TRIALS.c[name] for name in ("trial_id", "number", "state")),
    *(TRIALS.c[f"datetime_{moment}"] for moment in ("start", "complete")),
)
_SELECT_ONE_ROW = _SELECT_ROW.where(TRIALS.c.trial_id == _TRIAL)
_SELECT_ROWS = _SELECT_ROW.where(
    TRIALS.c.study_id == _STUDY,
    sql.or_(TRIALS.c.trial_id > sql.bindparam("after"), TRIALS.c.trial_id.in_(_IDS)),
).order_by(TRIALS.c.trial_id)
_SELECT_STUDY = sql.select(STUDIES.c.study_id).where(STUDIES.c.study_id == _STUDY)
_SELECT_STATE = sql.select(TRIALS.c.state).where(TRIALS.c.trial_id == _TRIAL)
_SELECT_DISTRIBUTION = (
    sql.select(PARAMS.c.distribution_json)
    .join(TRIALS, TRIALS.c.trial_id == PARAMS.c.trial_id)
    .where(TRIALS.c.study_id == _STUDY, PARAMS.c.param_name == sql.bindparam("name"))
    .limit(1)
)


def select_rows(
    connection: Connection, study_id: int, after_id: int, included_ids: Iterable[int] = ()
) -> Sequence[Any]:
    """Read the rows of a study in the table of trials, by id.

    Args:
        connection: A connection in a transaction.
        study_id: Id of the study.
        after_id: Trials with higher ids are read.
        included_ids: Ids of other trials to read.

    Raises:
        KeyError: There is no such study.
    """
    ids = set(included_ids)
    few = len(ids) <= _MAX_IDS
    parameters = {
        "study": study_id, "after": after_id if few else -1, "ids": list(ids) if few else []
    }  # fmt: skip
    rows = connection.execute(_SELECT_ROWS, parameters).all()
    if not rows and connection.execute(_SELECT_STUDY, {"study": study_id}).first() is None:
        raise KeyError(rdb_models.NOT_FOUND_MSG)
    return rows if few else [row for row in rows if row[0] > after_id or row[0] in ids]


def select_row(connection: Connection, trial_id: int) -> Any:
    """Read the row of one trial in the table of trials.

    Raises:
        KeyError: There is no such trial.
    """
    row = connection.execute(_SELECT_ONE_ROW, {"trial": trial_id}).first()
    if row is None:
        raise KeyError(rdb_models.NOT_FOUND_MSG)
    return row


def read_trials(connection: Connection, rows: Sequence[Any]) -> list[FrozenTrial]:
    """Read the trials that have these rows in the table of trials."""
    details: defaultdict[int, list[Any]] = defaultdict(list)
    for start in range(0, len(rows), _MAX_IDS):
        ids = [row[0] for row in rows[start : start + _MAX_IDS]]
        query, parameters = (
            (_SELECT_DETAILS_OF_ONE, {"trial": ids[0]})
            if len(ids) == 1
            else (_SELECT_DETAILS, {"ids": ids})
        )
        for trial_id, *detail in connection.execute(query, parameters).all():
            details[trial_id].append(detail)
    return [_trial_of(row, details[row[0]]) for row in rows]


# A study has a few distributions, and a row for each parameter of each trial.
_distribution_of = functools.cache(json_to_distribution)


def _trial_of(row: Any, details: list[list[Any]]) -> FrozenTrial:
    trial_id, number, state, start, complete = row
    by_kind: tuple[list[Any], ...] = ([], [], [], [], [])
    for kind, *detail in details:
        by_kind[kind].append(detail)
    for kind_rows in by_kind:
        kind_rows.sort(key=lambda detail: detail[0])
    params, values, steps, user_attrs, system_attrs = by_kind
    distributions = {name: _distribution_of(text) for _, name, text, _ in params}
    return FrozenTrial(
        number=number,
        state=state,
        value=None,
        values=[_float_of(kind, value) for _, _, kind, value in values] or None,
        datetime_start=_local_time(start),
        datetime_complete=_local_time(complete),
        params={name: distributions[name].to_external_repr(x) for _, name, _, x in params},
        distributions=distributions,
        user_attrs={name: json.loads(text) for _, name, text, _ in user_attrs},
        system_attrs={name: json.loads(text) for _, name, text, _ in system_attrs},
        intermediate_values={step: _float_of(kind, value) for step, _, kind, value in steps},
        trial_id=trial_id,
    )


_SPECIAL_FLOATS = {"INF_POS": float("inf"), "INF_NEG": float("-inf"), "NAN": float("nan")}


def _float_of(kind: str, value: float | None) -> float:
    return _SPECIAL_FLOATS[kind] if value is None else value


def _local_time(time: datetime | None) -> datetime | None:
    """Convert a stored time in UTC to local time, as Optuna does."""
    return None if time is None else time.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def check_updatable(connection: Connection, trial_id: int) -> None:
    """Check that a trial exists and has not ended.

    Raises:
        KeyError: There is no such trial.
        UpdateFinishedTrialError: The trial has ended.
    """
    state: TrialState | None = connection.execute(_SELECT_STATE, {"trial": trial_id}).scalar()
    if state is None:
        raise KeyError(rdb_models.NOT_FOUND_MSG)
    if state.is_finished():
        raise UpdateFinishedTrialError(f"Trial#{trial_id} has already finished.")


def check_compatible(
    connection: Connection, study_id: int, distributions: Mapping[str, BaseDistribution]
) -> None:
    """Check that distributions are compatible with those of the same names in a study.

    Raises:
        ValueError: A distribution is not compatible.
    """
    for name, distribution in distributions.items():
        parameters = {"study": study_id, "name": name}
        stored = connection.execute(_SELECT_DISTRIBUTION, parameters).scalar()
        if stored is not None:
            check_distribution_compatibility(_distribution_of(stored), distribution)
