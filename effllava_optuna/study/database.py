"""What we do differently from Optuna in a relational database."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import sqlalchemy
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial
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
    """Optuna's storage, which stores the parameters of a template all at once.

    Optuna asks three questions about each parameter and each attribute before it stores one. Here
    a parameter is asked about once for each study and process, and not again while its
    distribution stays the same.
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
