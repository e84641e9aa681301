"""The location of a study: its storage, its name and, if there is one, its study file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from effllava_optuna.config.validation_messages import cure_of_difference
from effllava_optuna.errors import ConfigError, EffllavaError, ExportError, StudyError
from effllava_optuna.files import expand_home, why_unwritable
from effllava_optuna.passwords import shown_url

if TYPE_CHECKING:
    from optuna import Study

    from effllava_optuna.config.schema import StudyConfig


@dataclass(frozen=True, slots=True)
class StudyLocation:
    """The location of the study that a command works on.

    Attributes:
        url: URL of the storage.
        name: Name of the study.
        arguments: Arguments that select the study in another command.
        config: The study file; None if none was given.
        file: Path of the study file, if one was given.
    """

    url: str
    name: str
    arguments: str
    config: StudyConfig | None = None
    file: Path | None = None

    def open(self) -> Study:
        """Open the study and check that its file, if one was given, still describes it.

        Data, model and tensors may have moved with the file, see `config_of`: stored digests
        prove that they are the same. Nothing is written.

        Raises:
            StudyError: There is no such study, or this version cannot read it.
            ConfigError: The file differs from the one that the study began with.
        """
        from effllava_optuna.storage.connection import open_storage
        from effllava_optuna.storage.studies import config_of, first_difference, open_study

        study = open_study(open_storage(self.url), self.name)
        if self.config is not None:
            difference = first_difference(config_of(study), self.config)
            if difference is not None:
                cure = cure_of_difference(self.url, self.name)
                raise ConfigError(f"{self.file}: {difference}.", hint=cure)
        return study

    def config_of(self, study: Study) -> StudyConfig:
        """Return the stored config of a study, with the paths of the study file if one is given.

        Raises:
            ConfigError: Another version of the package wrote it, with keys that this one lacks.
        """
        from effllava_optuna.storage.studies import config_of, with_paths

        stored = config_of(study)
        return stored if self.config is None else with_paths(stored, self.config)

    def exists(self) -> bool:
        """Return whether the storage has the study, without creating the storage."""
        from effllava_optuna.storage.connection import open_storage
        from effllava_optuna.storage.studies import study_exists

        try:
            return study_exists(open_storage(self.url), self.name)
        except EffllavaError:
            return False

    @property
    def is_read_only(self) -> bool:
        """Return whether the storage is a file in a place that cannot be written."""
        from effllava_optuna.storage.backends.read_only import is_read_only
        from effllava_optuna.storage.urls import file_of

        file = file_of(self.url)
        return file is not None and is_read_only(file)

    def refuse_read_only(self) -> None:
        """Refuse a storage in a place that cannot be written.

        Raises:
            StudyError: It is.
        """
        from effllava_optuna.storage.backends.read_only import read_only_error
        from effllava_optuna.storage.urls import file_of

        file = file_of(self.url)
        if file is not None and self.is_read_only:
            raise read_only_error(file)

    def export_directory(self, config: StudyConfig) -> Path | None:
        """Return the export directory; None: no export.

        A relative one, which only a config without a file has, is relative to the study file or
        the current directory.
        """
        directory = config.export.directory
        if directory is None:
            return None
        path = expand_home(directory)
        return path if self.file is None else self.file.parent / path


def locate_file(file: Path, config: StudyConfig) -> StudyLocation:
    """Return the location of the study that a file describes.

    Raises:
        ConfigError: Its storage, or its directory or bucket of artifacts, cannot be used.
    """
    from effllava_optuna.storage.urls import absolute_url, check_url, sqlite_url

    url = sqlite_url(file.with_suffix(".db"))
    if config.study.storage is not None or config.study.artifacts is not None:
        from effllava_optuna.storage.artifact_store import artifact_backend_of

        if config.study.storage is not None:
            url = absolute_url(config.study.storage, file.absolute().parent)
        try:
            check_url(url)
            artifact_backend_of(url, config)
        except StudyError as error:
            raise ConfigError(f"{file}: [study]: {error.message}", hint=error.hint) from error
    return StudyLocation(url, config.study.name, shlex.quote(str(file)), config=config, file=file)


def check_outputs(location: StudyLocation, config: StudyConfig) -> None:
    """Check that what a study writes can be written where its file says, before it begins.

    Raises:
        StudyError: The study exists in a read-only place.
        ConfigError: The database, the artifacts, the latency tables or the export cannot be
            written there.
    """
    location.refuse_read_only()
    from effllava_optuna.export_target import check_export_directory
    from effllava_optuna.storage.artifact_store import DirectoryArtifactStore, artifact_backend_of
    from effllava_optuna.storage.urls import file_of

    source = location.file or location.name
    artifacts, table = artifact_backend_of(location.url, config), config.latency.table
    database = file_of(location.url)
    outputs = {
        "study.storage": database,
        "study.artifacts": (
            artifacts.path if isinstance(artifacts, DirectoryArtifactStore) else None
        ),
        "latency.table": None if table is None else expand_home(table),
    }
    for key, path in outputs.items():
        reason = why_unwritable(path) if path is not None else ""
        if reason:
            raise ConfigError(
                f"{source}: {key}: {path} cannot be written: {reason}.",
                hint="Use another place, or change its permissions.",
            )
    if database is not None and not database.absolute().parent.is_dir():
        raise ConfigError(
            f"{source}: study.storage: there is no directory {str(database.parent)!r}.",
            hint="Create it, or use another place.",
        )
    directory = location.export_directory(config)
    if directory is None:
        return
    try:
        check_export_directory(directory, overwrite=True)
    except ExportError as error:
        raise ConfigError(
            f"{source}: export.directory: {error.message}", hint=error.hint
        ) from error


def locate(url: str, name: str) -> StudyLocation:
    """Return the location of a study in a storage."""
    return StudyLocation(url, name, storage_arguments(url, name))


def storage_arguments(url: str, name: str) -> str:
    """Return the options that select a study by its storage, without a password."""
    return f"--storage {shlex.quote(shown_url(url))} --study-name {shlex.quote(name)}"
