"""A relational storage that reads and writes trials in fewer statements than Optuna's."""

from __future__ import annotations

import time
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from effllava_optuna.errors import describe
from effllava_optuna.storage import trial_queries, trial_updates
from effllava_optuna.storage.backends.watched_file import WatchedFile
from effllava_optuna.storage.storage_internals import (
    backend_of,
    created_copy,
    rdb_models,
    trial_id_of,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from sqlalchemy import Connection, Engine

    from effllava_optuna.storage.backends.read_only import ReadOnlySqlite

_READ_ONLY = "effllava_read_only"  # an execution option of a connection
_TRIES, _PAUSE_SECONDS = 5, 0.5  # to create a trial while other processes lock the study

_configured: weakref.WeakSet[Engine] = weakref.WeakSet()


def configure_sqlite(storage: BaseStorage) -> None:
    """Configure SQLite so that transactions are exclusive from their start, and fast.

    Optuna reads before it writes inside one transaction. SQLite lets two processes read, and then
    both may take the same waiting trial. BEGIN IMMEDIATE takes the write lock first; read-only
    connections and databases do not need it. The write-ahead log with synchronous=NORMAL saves two
    of three flushes: a power cut can lose the last commits, a killed process loses none.

    No transaction starts if the file was removed or replaced: see `WatchedFile`.

    Does nothing for other storages, or if the storage is configured already.
    """
    backend = backend_of(storage)
    engine = getattr(backend, "engine", None)
    if engine is None or engine.dialect.name != "sqlite" or engine in _configured:
        return
    _configured.add(engine)
    engine.dispose()
    file = engine.url.database
    watched = WatchedFile(Path(file)) if file and file != ":memory:" else None

    @sqlalchemy.event.listens_for(engine, "do_connect")
    def _check(*_: Any) -> None:
        if watched is not None:
            watched.check()  # SQLite would create a file that does not exist

    @sqlalchemy.event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout=60000")
        if getattr(backend, "read_only", False):
            return
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @sqlalchemy.event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        if watched is not None:
            watched.check()
        options = connection.get_execution_options()
        read_only = options.get(_READ_ONLY) or getattr(backend, "read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


class Database(RDBStorage):
    """Optuna's relational storage, with other statements to write and read trials.

    With 64 genes, the objects and queries of `RDBStorage` are most of the cost of a trial. This
    class reads and writes rows, one transaction at a time. It caches two things: that a parameter
    is compatible with those of its study, for as long as its distribution stays the same; and the
    WAITING trials that it has read, until they change their state. Attributes that another process
    gives to a waiting trial after its creation are read when the trial runs.
    """

    def __init__(
        self, *arguments: Any, read_only: ReadOnlySqlite | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.read_only = read_only is not None
        if read_only is not None:
            read_only.configure(self.engine)
        self._compatible: dict[tuple[int, str], BaseDistribution] = {}  # by study id and parameter
        self._waiting: dict[int, FrozenTrial] = {}

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with (
            _translated_errors(),
            _named_damage(),
            self.engine.connect() as connection,
        ):
            yield connection.execution_options(**{_READ_ONLY: True})

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with _translated_errors(), self.engine.begin() as connection:
            yield connection

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        if template_trial is None:
            return super()._create_new_trial(study_id)
        for _ in range(_TRIES - 1):
            try:
                return self._insert_trial(study_id, template_trial)
            except StorageInternalError:  # perhaps a deadlock
                time.sleep(_PAUSE_SECONDS)
        return self._insert_trial(study_id, template_trial)

    def _insert_trial(self, study_id: int, template: FrozenTrial) -> FrozenTrial:
        unchecked = {
            name: distribution
            for name, distribution in template.distributions.items()
            if self._compatible.get((study_id, name)) != distribution
        }
        with self._writing() as connection:
            trial_updates.lock_study(connection, study_id)
            trial_queries.check_compatible(connection, study_id, unchecked)
            trial_id, number = trial_updates.insert_trial(connection, study_id, template)
        self._compatible |= {(study_id, name): unchecked[name] for name in unchecked}
        return created_copy(template, trial_id, number)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Write the state and the values of a trial.

        Returns:
            Whether the state was written; false for RUNNING if the trial is not WAITING.

        Raises:
            KeyError: There is no such trial.
            UpdateFinishedTrialError: The trial has ended.
        """
        try:
            with self._writing() as connection:
                if not trial_updates.set_state(connection, trial_id, state):
                    trial_queries.check_updatable(connection, trial_id)
                    return False
                if values is not None:
                    trial_updates.upsert_values(connection, trial_id, values)
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
            UpdateFinishedTrialError: The trial has ended.
        """
        self._write_attrs(trial_queries.USER_ATTRS, trial_id, attrs)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write a system attribute of a trial that has not ended."""
        self._write_attrs(trial_queries.SYSTEM_ATTRS, trial_id, {key: value})

    def set_study_system_attrs(self, study_id: int, attrs: Mapping[str, Any]) -> None:
        """Write system attributes of a study in one transaction."""
        with self._writing() as connection:
            trial_updates.upsert_study_attrs(connection, study_id, attrs)

    def _write_attrs(self, table: Any, trial_id: int, attrs: Mapping[str, Any]) -> None:
        with self._writing() as connection:
            trial_queries.check_updatable(connection, trial_id)
            trial_updates.upsert_attrs(connection, table, trial_id, attrs)
        self._waiting.pop(trial_id, None)

    def _set_trial_param(self, trial_id: int, *arguments: Any) -> None:
        super()._set_trial_param(trial_id, *arguments)
        self._waiting.pop(trial_id, None)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Write the value that a trial reports at a step."""
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._waiting.pop(trial_id, None)

    def delete_study(self, study_id: int) -> None:
        """Delete a study; the database may use its id and those of its trials again."""
        super().delete_study(study_id)
        self._waiting.clear()
        self._compatible.clear()

    def get_all_studies(self) -> list[Any]:  # of a class that Optuna keeps private
        """Read the names and attributes of all studies."""
        with _named_damage():
            return super().get_all_studies()

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Read the user attributes of a study."""
        with _named_damage():
            return super().get_study_user_attrs(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Read the system attributes of a study."""
        with _named_damage():
            return super().get_study_system_attrs(study_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read one trial.

        Raises:
            KeyError: There is no such trial.
        """
        with self._reading() as connection:
            row = trial_queries.select_row(connection, trial_id)
            return trial_queries.read_trials(connection, [row])[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        with self._reading() as connection:
            rows = trial_queries.select_rows(
                connection, study_id, trial_id_greater_than, included_trial_ids
            )
            selected = [row for row in rows if states is None or row.state in states]
            trials = {
                row.trial_id: self._waiting[row.trial_id]
                for row in selected
                if row.state == TrialState.WAITING and row.trial_id in self._waiting
            }
            uncached = [row for row in selected if row.trial_id not in trials]
            read = trial_queries.read_trials(connection, uncached)
        for row in rows:
            self._waiting.pop(row.trial_id, None)
        trials |= {trial_id_of(trial): trial for trial in read}
        self._waiting |= {
            trial_id: trial
            for trial_id, trial in trials.items()
            if trial.state == TrialState.WAITING
        }
        return [trials[row.trial_id] for row in selected]


@contextmanager
def _named_damage() -> Iterator[None]:
    """Raise errors about stored values as `StorageInternalError`.

    A value may be no JSON, no date, or no state of a trial, although SQLite finds its pages whole.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError) as error:
        if error.args == (rdb_models.NOT_FOUND_MSG,):  # a study or trial
            raise
        raise StorageInternalError(f"a stored value is corrupt: {describe(error)}") from None


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raise database errors as `StorageInternalError`, but for violated constraints."""
    try:
        yield
    except IntegrityError:
        raise
    except SQLAlchemyError as error:
        raise StorageInternalError(f"The database reported an error: {error}") from error
