"""Where studies live: databases opened safely, and what we keep in them.

Everything the dashboard shows (values, parameters, numeric attributes) is named here.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage

from effllava_optuna.errors import StudyError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from effllava_optuna.study.spec import StudySpec

PREFIX = "effllava:"
SPEC = f"{PREFIX}spec"
ANATOMY = f"{PREFIX}anatomy"
MANIFEST = f"{PREFIX}manifest"
RESULTS = f"{PREFIX}results"
CHOSEN = f"{PREFIX}chosen"
EXPORTED = f"{PREFIX}exported"
METRICS = ["quality", "latency_ms"]
DIRECTIONS: list[Literal["maximize", "minimize"]] = ["maximize", "minimize"]


def control_name(study_name: str) -> str:
    """Name the control study that records the epochs of a study."""
    return f"{study_name}/projector"


def sqlite_file(url: str) -> Path | None:
    """Give the file behind a SQLite URL; None for other databases."""
    parsed = sqlalchemy.make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return Path(parsed.database)


def open_storage(url: str, *, create: bool = False) -> BaseStorage:
    """Open the database at ``url``.

    Args:
        url: A SQLAlchemy URL; SQLite is what is supported today.
        create: Make a SQLite file that does not exist yet.

    Raises:
        StudyError: The URL is no SQLite URL, the file is not there, or is no Optuna database of
            a version that this Optuna reads.
    """
    try:
        file = sqlite_file(url)
    except sqlalchemy.exc.ArgumentError as error:
        raise StudyError(
            f"{url!r} is no database URL.", hint="Use one such as sqlite:///study.db."
        ) from error
    if file is None:
        raise StudyError(
            f"{url!r} is no SQLite file.", hint="Use a URL such as sqlite:///study.db."
        )
    if not create and not file.is_file():
        raise StudyError(f"{file}: there is no such database.", hint="Start with `run`.")
    try:
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        guard(storage)
        storage.get_all_studies()
    except (
        RuntimeError,
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
    ) as error:
        first = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StudyError(
            f"{file}: cannot be opened as an Optuna database: {first}",
            hint=f"Use another file, or `optuna storage upgrade --storage {url}`.",
        ) from error
    return optuna.storages._CachedStorage(storage)


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


def url_of(study: optuna.Study) -> str | None:
    """Give the URL of the SQLite database that ``study`` is in; None for other storages."""
    backend = getattr(study._storage, "_backend", study._storage)
    url = getattr(backend, "url", None)
    return url if isinstance(url, str) and sqlite_file(url) is not None else None


def create_study(storage: BaseStorage, spec: StudySpec) -> optuna.Study:
    """Create the study of ``spec``.

    Raises:
        StudyError: There is one of that name.
    """
    refuse_existing(storage, spec.study.name)
    study = optuna.create_study(
        storage=storage,
        study_name=spec.study.name,
        directions=DIRECTIONS,
        sampler=optuna.samplers.RandomSampler(),
    )
    adopt_study(study, spec)
    return study


def refuse_existing(storage: BaseStorage, name: str) -> None:
    """Refuse to begin a study that is there.

    Raises:
        StudyError: It is.
    """
    if name in optuna.get_all_study_names(storage):
        raise StudyError(
            f"Study {name!r} exists already.",
            hint="Continue it with `resume`, or choose another study.name.",
        )


def adopt_study(study: optuna.Study, spec: StudySpec) -> None:
    """Write into ``study`` what makes it one of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(METRICS)
    study.set_user_attr(SPEC, spec.document())


def open_study(storage: BaseStorage, name: str) -> optuna.Study:
    """Open a study that exists; its sampler is set by whoever continues it.

    Raises:
        StudyError: There is no such study, or it is not one of ours.
    """
    try:
        study = optuna.load_study(
            storage=storage, study_name=name, sampler=optuna.samplers.RandomSampler()
        )
    except KeyError as error:
        names = optuna.get_all_study_names(storage)
        ours = [found for found in names if not found.endswith(control_name(""))]
        raise StudyError(
            f"There is no study {name!r} in this database.",
            hint=f"It has: {', '.join(sorted(ours)) or 'none'}.",
        ) from error
    if SPEC not in study.user_attrs:
        raise StudyError(
            f"Study {name!r} was not made by effllava_optuna.",
            hint="Start one with `python -m effllava_optuna.study run FILE`.",
        )
    return study


def spec_of(study: optuna.Study) -> StudySpec:
    """Read the spec that is kept in ``study``.

    Raises:
        SpecError: Another version of the package wrote it, with keys that this one lacks.
    """
    from effllava_optuna.study.spec import StudySpec

    return StudySpec.of(study.user_attrs[SPEC], place=f"study {study.study_name!r}")


def difference(stored: StudySpec, given: StudySpec) -> str | None:
    """Name the first key in which two specs differ; where a study lives does not count."""
    free = {("study", "storage"), ("study", "artifacts"), ("export", "directory")}
    old, new = stored.document(), given.document()
    for table in old:
        for key in old[table]:
            if (table, key) not in free and old[table][key] != new[table][key]:
                return (
                    f"{table}.{key} is {json.dumps(new[table][key])} in the file and "
                    f"{json.dumps(old[table][key])} in the study"
                )
    return None
