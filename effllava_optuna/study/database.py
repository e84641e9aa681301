"""What we do differently from Optuna in a relational database."""

from __future__ import annotations

import copy
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from effllava_optuna.study import rows

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from sqlalchemy import Connection

_READING = "effllava_reading"  # an option of a connection
_TRIES, _PAUSE = 5, 0.5  # to create a trial, where others lock the study; seconds between two


def guard(storage: BaseStorage) -> None:
    """Make transactions on SQLite exclusive from their start, and cheap.

    Optuna reads before it writes inside one transaction. SQLite lets two processes read, and
    then both believe that they alone took a waiting trial; BEGIN IMMEDIATE takes the write lock
    first, unless nothing will be written. The write-ahead log with synchronous=NORMAL saves two
    of three flushes; a power cut can cost the last commits, a killed process none.
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
        reading = connection.get_execution_options().get(_READING)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


class Database(RDBStorage):
    """Optuna's storage, with other ways to write trials and to read them.

    With 64 genes, its objects and its questions are most of what a trial costs. Here rows are
    read and written as rows, a transaction at a time. Two things are remembered: that a parameter
    is compatible with those of its study, for as long as its distribution stays the same; and
    what was read of a trial that waits, until it does so no more. Attributes that another process
    gives a waiting trial after it was created are read when it runs.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._checked: dict[tuple[int, str], BaseDistribution] = {}
        self._waiting: dict[int, FrozenTrial] = {}

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._told(), self.engine.connect() as connection:
            yield connection.execution_options(**{_READING: True})

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._told(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise StorageInternalError(f"The database refused: {error}") from error

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        if template_trial is None:
            return super()._create_new_trial(study_id)
        for _ in range(_TRIES - 1):
            try:
                return self._created(study_id, template_trial)
            except StorageInternalError:  # a deadlock, perhaps
                time.sleep(_PAUSE)
        return self._created(study_id, template_trial)

    def _created(self, study_id: int, template: FrozenTrial) -> FrozenTrial:
        distributions = template.distributions
        fresh = {
            name: distribution
            for name, distribution in distributions.items()
            if self._checked.get((study_id, name)) != distribution
        }
        with self._writing() as connection:
            rows.lock_study(connection, study_id)
            rows.check_compatible(connection, study_id, fresh)
            trial_id, number = rows.create(connection, study_id, template)
        self._checked |= {(study_id, name): distributions[name] for name in fresh}
        created = copy.deepcopy(template)
        created.number, created._trial_id = number, trial_id
        return created

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Write the state and the values of a trial.

        Returns:
            Whether it could be moved; not to RUNNING, where it does not wait.

        Raises:
            KeyError: There is no such trial.
            UpdateFinishedTrialError: It has ended.
        """
        try:
            with self._writing() as connection:
                if not rows.move(connection, trial_id, state):
                    rows.check_updatable(connection, trial_id)
                    return False
                if values is not None:
                    rows.put_values(connection, trial_id, values)
        except IntegrityError:
            return False
        finally:
            self._waiting.pop(trial_id, None)
        return True

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write a user attribute of a trial that has not ended."""
        self.set_trial_user_attrs(trial_id, {key: value})

    def set_trial_user_attrs(self, trial_id: int, attrs: Mapping[str, Any]) -> None:
        """Write user attributes of a trial in one transaction.

        Raises:
            KeyError: There is no such trial.
            UpdateFinishedTrialError: It has ended.
        """
        self._put_attrs(rows.USER_ATTRS, trial_id, attrs)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write a system attribute of a trial that has not ended."""
        self._put_attrs(rows.SYSTEM_ATTRS, trial_id, {key: value})

    def set_study_system_attrs(self, study_id: int, attrs: Mapping[str, Any]) -> None:
        """Write system attributes of a study in one transaction."""
        with self._writing() as connection:
            rows.put_study_attrs(connection, study_id, attrs)

    def _put_attrs(self, table: Any, trial_id: int, attrs: Mapping[str, Any]) -> None:
        with self._writing() as connection:
            rows.check_updatable(connection, trial_id)
            rows.put_attrs(connection, table, trial_id, attrs)
        self._waiting.pop(trial_id, None)

    def _set_trial_param(self, trial_id: int, *rest: Any) -> None:
        super()._set_trial_param(trial_id, *rest)
        self._waiting.pop(trial_id, None)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Write what a trial reports at a step."""
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._waiting.pop(trial_id, None)

    def delete_study(self, study_id: int) -> None:
        """Delete a study; ids of its trials may come again."""
        super().delete_study(study_id)
        self._waiting.clear()

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read one trial.

        Raises:
            KeyError: There is none.
        """
        with self._reading() as connection:
            return rows.read(connection, [rows.head(connection, trial_id)])[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        with self._reading() as connection:
            heads = rows.heads(connection, study_id, trial_id_greater_than, included_trial_ids)
            wanted = [head for head in heads if states is None or head.state in states]
            known = {
                head.trial_id: self._waiting[head.trial_id]
                for head in wanted
                if head.state == TrialState.WAITING and head.trial_id in self._waiting
            }
            fresh = rows.read(connection, [one for one in wanted if one.trial_id not in known])
        for head in heads:
            self._waiting.pop(head.trial_id, None)
        known |= {trial._trial_id: trial for trial in fresh}
        self._waiting |= {
            number: trial for number, trial in known.items() if trial.state == TrialState.WAITING
        }
        return [known[head.trial_id] for head in wanted]
