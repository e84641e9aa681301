"""The location of a study: its storage, its name and, if there is one, its study file."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from effllava_optuna.errors import ConfigError, EffllavaError, StudyError
from effllava_optuna.files import expand_home

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

        The data may have moved with the file: the stored digest of the task proves that they are
        the same.

        Raises:
            StudyError: There is no such study, or this version cannot read it.
            ConfigError: The file differs from the one that the study began with.
        """
        from effllava_optuna.storage.connection import open_storage
        from effllava_optuna.storage.studies import (
            config_of,
            first_difference,
            open_study,
            update_data_paths,
        )

        study = open_study(open_storage(self.url), self.name)
        if self.config is not None:
            difference = first_difference(config_of(study), self.config)
            if difference is not None:
                raise ConfigError(
                    f"{self.file}: {difference}.",
                    hint="Restore the file, or use another study.name for a new study.",
                )
            update_data_paths(study, self.config)
        return study

    def exists(self) -> bool:
        """Return whether the storage has the study, without creating the storage."""
        from effllava_optuna.storage.connection import open_storage
        from effllava_optuna.storage.studies import study_exists

        try:
            return study_exists(open_storage(self.url), self.name)
        except EffllavaError:
            return False

    def export_directory(self, config: StudyConfig) -> Path | None:
        """Return the export directory, relative to the study file; None: no export."""
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
    url = config.study.storage or f"sqlite:///{file.with_suffix('.db')}"
    if config.study.storage is not None or config.study.artifacts is not None:
        from effllava_optuna.storage.artifact_store import artifact_backend_of
        from effllava_optuna.storage.urls import check_url

        try:
            check_url(url)
            artifact_backend_of(url, config)
        except StudyError as error:
            raise ConfigError(f"{file}: [study]: {error.message}", hint=error.hint) from error
    return StudyLocation(url, config.study.name, shlex.quote(str(file)), config=config, file=file)


def locate(url: str, name: str) -> StudyLocation:
    """Return the location of a study in a storage."""
    return StudyLocation(url, name, storage_arguments(url, name))


def storage_arguments(url: str, name: str) -> str:
    """Return the options that select a study by its storage."""
    return f"--storage {shlex.quote(url)} --study-name {shlex.quote(name)}"


def without_password(url: str) -> str:
    """Return a URL with its password replaced, for messages.

    Example:
        >>> without_password("postgresql+psycopg://me:secret@host/name")
        'postgresql+psycopg://me:***@host/name'
    """
    return re.sub(r"(?<=://)([^:/@]*):[^@/]*@", r"\1:***@", url)
