"""What we do differently from Optuna in a relational database."""

from __future__ import annotations

import copy
import functools
import json
from typing import TYPE_CHECKING, Any

import sqlalchemy
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from sqlalchemy.orm import Session


def guard(storage: BaseStorage) -> None:
    """Make transactions on SQLite exclusive from their start, and cheap.

    Optuna reads before it writes inside one transaction. SQLite lets two processes read, and
    then both believe that they alone took a waiting trial; BEGIN IMMEDIATE takes the write lock
    first. The write-ahead log with synchronous=NORMAL saves two of three flushes; a power cut can
    cost the last commits, a killed process none.
    """
    backend = getattr(storage, "_backend", storage)
    engine = getattr(backend, "engine", None)
    if engine is None or engine.dialect.name != "sqlite":
        return
    if getattr(engine, "_effllava_guarded", False):
        return
    engine._effllava_guarded = True
    engine.dispose()

    @sqlalchemy.event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout=60000")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @sqlalchemy.event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


class Database(RDBStorage):
    """Optuna's storage, with other ways to store a template and to read trials.

    Optuna asks three questions about each parameter and attribute of a template before it stores
    one, and makes an object of each row and two distributions of each parameter that it reads.
    With 64 genes, that is most of what a trial costs. Here a parameter is asked about once for
    each study and process, and not again while its distribution stays the same; and rows are read
    as rows.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._checked: dict[tuple[int, str], BaseDistribution] = {}

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> Any:
        if template_trial is None:
            return super()._get_prepared_new_trial(study_id, None, session)
        from optuna.storages._rdb import models

        template, distributions = copy.copy(template_trial), template_trial.distributions
        known = {
            name: value
            for name, value in template.params.items()
            if self._checked.get((study_id, name)) == distributions[name]
        }
        template.params = {
            name: value for name, value in template.params.items() if name not in known
        }
        template.user_attrs, template.system_attrs = {}, {}
        trial = super()._get_prepared_new_trial(study_id, template, session)
        session.add_all(
            models.TrialParamModel(
                trial_id=trial.trial_id,
                param_name=name,
                param_value=distributions[name].to_internal_repr(value),
                distribution_json=distribution_to_json(distributions[name]),
            )
            for name, value in known.items()
        )
        for model, attrs in (
            (models.TrialUserAttributeModel, template_trial.user_attrs),
            (models.TrialSystemAttributeModel, template_trial.system_attrs),
        ):
            session.add_all(
                model(trial_id=trial.trial_id, key=key, value_json=json.dumps(value))
                for key, value in attrs.items()
            )
        self._checked |= {(study_id, name): distributions[name] for name in template.params}
        return trial

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read one trial.

        Raises:
            KeyError: There is none.
        """
        from optuna.storages._rdb import models, storage

        with storage._create_scoped_session(self.scoped_session) as session:
            found = _read(session, [models.TrialModel.trial_id == trial_id])
        if not found:
            raise KeyError(models.NOT_FOUND_MSG)
        return found[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        from optuna.storages._rdb import models, storage

        number = models.TrialModel.trial_id
        conditions: list[Any] = [models.TrialModel.study_id == study_id]
        if states is not None:
            conditions.append(
                models.TrialModel.state.in_([state for state in TrialState if state in states])
            )
        if trial_id_greater_than > -1:
            earlier = [one for one in included_trial_ids if one <= trial_id_greater_than]
            conditions.append(sqlalchemy.or_(number.in_(earlier), number > trial_id_greater_than))
        with storage._create_scoped_session(self.scoped_session) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session)
            return _read(session, conditions)


_distribution = functools.cache(json_to_distribution)  # a study has a few, and millions of copies


def _read(session: Session, conditions: Sequence[Any]) -> list[FrozenTrial]:
    """Read the trials that meet conditions, by id: one query for each table."""
    from optuna.storages._rdb import models

    trial = models.TrialModel
    chosen = sqlalchemy.select(trial.trial_id).where(*conditions)

    def rows(model: Any, *columns: Any, order: Any = None) -> dict[int, list[Any]]:
        query = sqlalchemy.select(model.trial_id, *columns).where(model.trial_id.in_(chosen))
        found: dict[int, list[Any]] = {}
        for number, *row in session.execute(query if order is None else query.order_by(order)):
            found.setdefault(number, []).append(row)
        return found

    heads: Sequence[Any] = session.scalars(
        sqlalchemy.select(trial).where(*conditions).order_by(trial.trial_id)
    ).all()
    if not heads:
        return []
    param, value, step = (
        models.TrialParamModel, models.TrialValueModel, models.TrialIntermediateValueModel,
    )  # fmt: skip
    user, system = models.TrialUserAttributeModel, models.TrialSystemAttributeModel
    params = rows(
        param, param.param_name, param.param_value, param.distribution_json, order=param.param_id
    )
    values = rows(value, value.value, value.value_type, order=value.objective)
    steps = rows(step, step.step, step.intermediate_value, step.intermediate_value_type)
    user_attrs = rows(user, user.key, user.value_json)
    system_attrs = rows(system, system.key, system.value_json)
    return [
        FrozenTrial(
            number=head.number,
            state=head.state,
            value=None,
            values=[value.stored_repr_to_value(*row) for row in values.get(key, ())] or None,
            datetime_start=head.datetime_start,
            datetime_complete=head.datetime_complete,
            params={
                name: _distribution(told).to_external_repr(stored)
                for name, stored, told in params.get(key, ())
            },
            distributions={name: _distribution(told) for name, _, told in params.get(key, ())},
            user_attrs={name: json.loads(told) for name, told in user_attrs.get(key, ())},
            system_attrs={name: json.loads(told) for name, told in system_attrs.get(key, ())},
            intermediate_values={
                at: step.stored_repr_to_intermediate_value(*row) for at, *row in steps.get(key, ())
            },
            trial_id=key,
        )
        for head in heads
        for key in (head.trial_id,)
    ]
