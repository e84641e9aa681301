"""Where studies live: databases opened safely, and what we keep in them.

Everything the dashboard shows (values, parameters, numeric attributes) is named here.
"""

from __future__ import annotations

import json
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning

from effllava_optuna.errors import StudyError, describe
from effllava_optuna.study.database import Database, guard

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from effllava_optuna.study.spec import StudySpec

PREFIX = "effllava:"
SPEC = f"{PREFIX}spec"
ANATOMY = f"{PREFIX}anatomy"
TASK = f"{PREFIX}task"
MANIFEST = f"{PREFIX}manifest"
CHANGES = f"{PREFIX}changes"
RESULTS = f"{PREFIX}results"
SCORES = f"{PREFIX}scores"
CHOSEN = f"{PREFIX}chosen"
EXPORTED = f"{PREFIX}exported"
CONSTRAINTS = "constraints"  # of a trial, for Optuna: above zero, it is infeasible
REASON = "reason"  # of a trial: why it failed; the dashboard shows it
OVER = "over_budget"  # of a trial: by how much, in words
METRICS = ["quality", "latency_ms"]
DIRECTIONS: list[Literal["maximize", "minimize"]] = ["maximize", "minimize"]


def control_name(study_name: str) -> str:
    """Name the control study that records the epochs of a study."""
    return f"{study_name}/projector"


_JOURNAL = "journal:///"
_GRPC = "grpc://"
_USE = "Use sqlite:///FILE.db, journal:///FILE.log, postgresql+psycopg://HOST/NAME or grpc://HOST:PORT."


def file_of(url: str) -> Path | None:
    """Give the file behind a SQLite or journal URL; None for servers.

    Raises:
        StudyError: It is no URL.
    """
    if url.startswith(_JOURNAL):
        return Path(url.removeprefix(_JOURNAL))
    if url.startswith(_GRPC):
        return None
    return sqlite_file(url)


def sqlite_file(url: str) -> Path | None:
    """Give the file behind a SQLite URL; None for other storages.

    Raises:
        StudyError: It is no URL.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError as error:
        raise StudyError(f"{url!r} is no database URL.", hint=_USE) from error
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return Path(parsed.database)


def open_storage(url: str, *, create: bool = False) -> BaseStorage:
    """Open the storage at ``url``.

    Args:
        url: ``sqlite:///FILE``, ``journal:///FILE``, ``postgresql+psycopg://HOST/NAME``, or
            ``grpc://HOST:PORT`` of Optuna's proxy in front of a database.
        create: Make a file that does not exist yet; tables of a server are made if need be.

    Raises:
        StudyError: The URL is none of these, the file or server is not there, or it holds no
            Optuna database of a version that this Optuna reads.
    """
    refuse_url(url)
    file = file_of(url)
    if file is not None and not create and not file.is_file():
        raise StudyError(f"{file}: there is no such database.", hint="Start with `run`.")
    if file is not None and not create and sqlite_file(url) is not None:
        _refuse_foreign(file)
    if url.startswith(_JOURNAL):
        return _journal(Path(url.removeprefix(_JOURNAL)))
    if url.startswith(_GRPC):
        return _proxy(url)
    kind = sqlalchemy.make_url(url).get_backend_name()
    options = {"connect_args": {"timeout": 60}} if kind == "sqlite" else {"pool_pre_ping": True}
    try:
        storage = Database(url, engine_kwargs=options)
        guard(storage)
        storage.get_all_studies()
    except ImportError as error:
        raise StudyError(
            f"{url!r}: its driver is missing: {error}.",
            hint="Install effllava-optuna[postgresql], and write postgresql+psycopg://.",
        ) from error
    except (
        RuntimeError,
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
    ) as error:
        cause = error.__cause__ or error  # Optuna's own words hide what the database said
        first = describe(getattr(cause, "orig", None) or cause)
        raise StudyError(
            f"{file or url}: cannot be opened as an Optuna database: {first}.",
            hint=f"Use another one, or `optuna storage upgrade --storage {url}`.",
        ) from error
    return optuna.storages._CachedStorage(storage)


def refuse_url(url: str) -> None:
    """Refuse a URL of no storage that can be used, without a look whether it is there.

    Raises:
        StudyError: It is no URL, or of something else.
    """
    if url.startswith((_JOURNAL, _GRPC)):
        if not url.removeprefix(_JOURNAL).removeprefix(_GRPC):
            raise StudyError(f"{url!r} names nothing.", hint=_USE)
        return
    file = sqlite_file(url)
    kind = sqlalchemy.make_url(url).get_backend_name()
    if kind not in _REASONS:
        raise StudyError(f"{url!r}: {kind} is not supported.", hint=_USE)
    if _REASONS[kind]:
        raise StudyError(f"{url!r}: {_REASONS[kind]}.", hint=_USE)
    if kind == "sqlite" and (file is None or str(file) == ":memory:"):
        raise StudyError(f"{url!r} names no file.", hint=_USE)


def _refuse_foreign(file: Path) -> None:
    """Refuse a file that Optuna would turn into a database of its own.

    Raises:
        StudyError: It holds no studies.
    """
    try:
        place = f"{file.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(place, uri=True, timeout=60)) as connection:
            query = "SELECT count(*) FROM sqlite_master WHERE name = 'studies'"
            (found,) = connection.execute(query).fetchone()
        told = "there are no studies in it"
    except sqlite3.Error as error:
        found, told = 0, str(error)
    if not found:
        raise StudyError(
            f"{file}: cannot be opened as an Optuna database: {told}.",
            hint="Name another one, or start with `run`.",
        )


_REASONS = {
    "sqlite": "",
    "postgresql": "",
    "mysql": "MySQL keeps 64 kB of an attribute, and calibration needs more",
    "mariadb": "MariaDB keeps 64 kB of an attribute, and calibration needs more",
}


def _journal(file: Path) -> BaseStorage:
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

    try:
        lock = JournalFileOpenLock(str(file))
        return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(
            f"{file}: cannot be opened as an Optuna journal: {error}", hint="Use another file."
        ) from error


def _proxy(url: str) -> BaseStorage:
    host, _, port = url.removeprefix(_GRPC).partition(":")
    if not host or not port.isdigit():
        raise StudyError(f"{url!r} names no host and port.", hint="Use grpc://HOST:PORT.")
    try:
        from optuna.storages import GrpcStorageProxy
    except ImportError as error:
        raise StudyError(f"{url!r}: {error}.", hint="Install effllava-optuna[grpc].") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        proxy = GrpcStorageProxy(host=host, port=int(port))
    try:
        proxy.wait_server_ready(timeout=10)
    except Exception as error:  # what gRPC raises has no family that is there without gRPC
        raise StudyError(
            f"{url!r} does not answer: {type(error).__name__}.",
            hint="Start optuna.storages.run_grpc_proxy_server in front of a database.",
        ) from error
    return proxy


def url_of(study: optuna.Study) -> str | None:
    """Give the URL of the SQLite database that ``study`` is in; None for other storages."""
    backend = getattr(study._storage, "_backend", study._storage)
    url = getattr(backend, "url", None)
    return url if isinstance(url, str) and sqlite_file(url) is not None else None


def place_of(study: optuna.Study) -> str:
    """Name the storage of a study for somebody who is where it is: without folders and secrets."""
    backend: Any = getattr(study._storage, "_backend", study._storage)
    if isinstance(backend, optuna.storages.RDBStorage):
        url = sqlalchemy.make_url(backend.url)
        if url.get_backend_name() == "sqlite" and url.database:
            url = url.set(database=Path(url.database).name)
        return url.render_as_string(hide_password=True)
    file = getattr(backend, "_file_path", None)
    if file is not None:
        return f"{_JOURNAL}{Path(file).name}"
    return f"{_GRPC}{backend._host}:{backend._port}" if hasattr(backend, "_host") else "URL"


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
        raise StudyError(
            f"There is no study {name!r} in this database.",
            hint=f"It has: {', '.join(_names(storage)) or 'none'}.",
        ) from error
    if SPEC not in study.user_attrs:
        raise StudyError(
            f"Study {name!r} was not made by effllava_optuna.",
            hint="Start one with `python -m effllava_optuna.study run FILE`.",
        )
    return study


def names_in(url: str) -> list[str]:
    """Name the studies at ``url`` that can be asked for.

    Raises:
        StudyError: There is no such storage.
    """
    return _names(open_storage(url))


def _names(storage: BaseStorage) -> list[str]:
    names = optuna.get_all_study_names(storage)
    return sorted(name for name in names if not name.endswith(control_name("")))


def spec_of(study: optuna.Study) -> StudySpec:
    """Read the spec that is kept in ``study``.

    Raises:
        SpecError: Another version of the package wrote it, with keys that this one lacks.
    """
    from effllava_optuna.study.spec import StudySpec

    return StudySpec.of(study.user_attrs[SPEC], place=f"study {study.study_name!r}")


_PATIENCE = ("failures", "timeout")  # of [search]: what was measured does not depend on them
_FREE = {
    ("study", "storage"),
    ("study", "artifacts"),
    ("export", "directory"),
    ("latency", "table"),
    ("task", "data"),
    *(("search", key) for key in _PATIENCE),
}


def renew(study: optuna.Study, given: StudySpec) -> None:
    """Let a study bear as much as ``given`` says from now on; all else stays as it began."""
    document = spec_of(study).document()
    table = given.search.model_dump(mode="json", include=set(_PATIENCE))
    if document["search"] | table != document["search"]:
        document["search"] |= table
        study.set_user_attr(SPEC, document)


def follow(study: optuna.Study, given: StudySpec) -> None:
    """Let a study read its data, and latency tables, where ``given`` says that they are now."""
    before = spec_of(study).document()
    document = spec_of(study).document()
    document["task"]["data"] = given.task.data
    document["latency"]["table"] = given.latency.table
    if document != before:
        study.set_user_attr(SPEC, document)


def difference(stored: StudySpec, given: StudySpec) -> str | None:
    """Name the first key in which two specs differ, of those that may not."""
    old, new = stored.document(), given.document()
    for table in old:
        for key in old[table]:
            if (table, key) not in _FREE and old[table][key] != new[table][key]:
                return (
                    f"{table}.{key} is {json.dumps(new[table][key])} in the file and "
                    f"{json.dumps(old[table][key])} in the study"
                )
    return None
