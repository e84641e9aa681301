"""Creating and opening studies, and comparing their study files."""

from __future__ import annotations

import json
import os
import warnings
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning

from effllava_optuna.errors import StudyError
from effllava_optuna.passwords import shown_url
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.control_study import create_control_study
from effllava_optuna.storage.names import CONFIG, DIRECTIONS, LEGACY, METRICS, is_control_name

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

    from effllava_optuna.config.schema import StudyConfig

_EXISTS = "Continue it with `resume`, or choose another study.name."
_LIMITS = ("failures", "timeout")  # keys of [search] that do not change what is measured

_PATHS = (
    ("study", "storage"),
    ("study", "artifacts"),
    ("study", "modules"),
    ("task", "data"),
    ("latency", "table"),
    ("export", "directory"),
)
_CHANGEABLE = {*_PATHS, *(("search", key) for key in _LIMITS)}
_MODEL = ("model", "path")
_ALLOCATED = ("sampler", "epochs", "generations", "population", "curves")  # by `allocate`


def create_study(storage: BaseStorage, config: StudyConfig) -> Study:
    """Create the study of ``config``.

    Raises:
        StudyError: A study of that name exists.
    """
    refuse_existing(storage, config.study.name)
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=config.study.name,
            directions=DIRECTIONS,
            sampler=optuna.samplers.RandomSampler(),
        )
    except DuplicatedStudyError as error:
        raise StudyError(
            f"Another process has just created study {config.study.name!r}.", hint=_EXISTS
        ) from error
    store_config(study, config)
    return study


def refuse_existing(storage: BaseStorage, name: str) -> None:
    """Refuse to create a study that exists.

    Raises:
        StudyError: A study of that name exists; the message says whether it can be continued.
    """
    if study_exists(storage, name):
        open_study(storage, name)  # raises if it cannot be continued
        raise StudyError(f"Study {name!r} exists already.", hint=_EXISTS)


def study_exists(storage: BaseStorage, name: str) -> bool:
    """Return whether a storage has a study of a name, of any version or program."""
    return name in optuna.get_all_study_names(storage)


def store_config(study: Study, config: StudyConfig) -> None:
    """Write a config and the names of the metrics into a study, and create its control study."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(METRICS)
    create_control_study(study)
    _write_config(study, config.document())  # the last one: see `open_study`


def _write_config(study: Study, document: dict[str, Any]) -> None:
    """Write a config; who may read the study need not know the password of its storage."""
    table = document["study"]
    storage = None if table["storage"] is None else shown_url(table["storage"])
    study.set_user_attr(CONFIG, document | {"study": table | {"storage": storage}})


def open_study(storage: BaseStorage, name: str) -> Study:
    """Open an existing study. Its sampler must be set before the search continues.

    Raises:
        StudyError: There is no such study, or this version of the package cannot read it.
    """
    try:
        study = optuna.load_study(
            storage=storage, study_name=name, sampler=optuna.samplers.RandomSampler()
        )
    except KeyError as error:
        raise StudyError(
            f"There is no study {name!r} in this database.",
            hint=f"It has: {', '.join(_study_names(storage)) or 'none'}.",
        ) from error
    refuse_older_version(study)
    if CONFIG not in study.user_attrs:
        raise StudyError(
            f"Study {name!r} was not created by effllava_optuna, or another process is just "
            "creating it.",
            hint="Repeat the command with `resume`; if it fails again, choose another study.name.",
        )
    return study


def refuse_older_version(study: Study) -> None:
    """Refuse a study of an older version of the package.

    Raises:
        StudyError: An older version wrote the study.
    """
    if LEGACY & study.user_attrs.keys():
        raise StudyError(
            f"Study {study.study_name!r} was written by an older version of effllava_optuna.",
            hint="Use that version, or start a new study under another study.name.",
        )


def study_names(url: str) -> list[str]:
    """Return the names of the studies at ``url``, without control studies.

    Raises:
        StudyError: There is no such storage.
    """
    return _study_names(open_storage(url))


def _study_names(storage: BaseStorage) -> list[str]:
    names = optuna.get_all_study_names(storage)
    return sorted(name for name in names if not is_control_name(name))


def config_of(study: Study) -> StudyConfig:
    """Return the config that is stored in ``study``.

    Raises:
        ConfigError: Another version of the package wrote it, with keys that this one lacks.
    """
    from effllava_optuna.config.schema import StudyConfig

    return StudyConfig.of(study.user_attrs[CONFIG], source=f"study {study.study_name!r}")


def update_failure_limits(study: Study, given: StudyConfig) -> None:
    """Store the limits on failures and time of another config; all other keys stay."""
    document = config_of(study).document()
    limits = given.search.model_dump(mode="json", include=set(_LIMITS))
    if document["search"] | limits != document["search"]:
        document["search"] |= limits
        _write_config(study, document)


def with_paths(stored: StudyConfig, given: StudyConfig) -> StudyConfig:
    """Return a stored config with the paths that another config has.

    The study file may have moved since the study began, with its data, model and tensors.
    """
    document, other = stored.document(), given.document()
    for table, key in (*_PATHS, _MODEL):
        if other[table][key] is not None:
            document[table][key] = other[table][key]
    return type(stored).of(document)


def update_paths(study: Study, given: StudyConfig) -> None:
    """Store the paths of another config."""
    stored = config_of(study)
    current = with_paths(stored, given)
    if current != stored:
        _write_config(study, current.document())


def first_difference(stored: StudyConfig, given: StudyConfig) -> str | None:
    """Return a sentence about the first key that differs but must not; None if there is none.

    A model may move with its study file: the digest of its weights shows whether it is the same.
    The command ``allocate`` stores another search than the file describes.
    """
    old, new = stored.document(), given.document()
    allocated = stored.search.sampler == "allocation" != given.search.sampler
    changeable = _CHANGEABLE | {("search", key) for key in _ALLOCATED if allocated}
    changeable |= {("task", k) for k in ("proxy", "validation", "test") if new["task"][k] is None}
    for table in old:
        for key in old[table]:
            values = old[table][key], new[table][key]
            moved = (table, key) == _MODEL and all(map(os.path.isabs, values))
            if (table, key) not in changeable and values[0] != values[1] and not moved:
                return (
                    f"{table}.{key} is {json.dumps(new[table][key])} in the file and "
                    f"{json.dumps(old[table][key])} in the study"
                )
    return None
