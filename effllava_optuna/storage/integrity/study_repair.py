"""Repair what killed processes have left in a study and beside it."""

from __future__ import annotations

import glob
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from effllava_optuna.errors import EffllavaError
from effllava_optuna.files import DRAFT_SUFFIX, expand_home, is_scratch
from effllava_optuna.samplers import fail_lost_trials
from effllava_optuna.storage.artifact_store import DirectoryArtifactStore, artifact_backend_of
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.control_study import (
    ControlStudy,
    control_study_name,
    load_control_study,
)
from effllava_optuna.storage.storage_internals import storage_of
from effllava_optuna.storage.studies import open_study

if TYPE_CHECKING:
    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.storage.location import StudyLocation

# A draft that was not written for so long belongs to a killed process.
_ABANDONED_SECONDS = 3600.0


def repair(location: StudyLocation) -> list[str]:
    """Repair what can be repaired without a risk.

    Trials and attempts of ended processes are failed, as `resume` does, and unfinished files are
    removed. Files that a trial refers to are not touched.

    Returns:
        One line for each repair.

    Raises:
        StudyError: There is no such study.
    """
    study = open_study(open_storage(location.url), location.name)
    done = [f"failed trial {number}: its process has ended" for number in fail_lost_trials(study)]
    if load_control_study(study) is not None:
        control_study = ControlStudy(storage_of(study), control_study_name(study))
        done += [
            f"failed attempt {number} of the control study: its process has ended"
            for number in control_study.fail_dead_attempts()
        ]
    for path in unfinished_files(location, location.config_of(study)):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            done.append(f"could not remove {path}: {error.strerror}")
        else:
            done.append(f"removed {path}: its process has ended")
    return done


def unfinished_files(location: StudyLocation, config: StudyConfig) -> list[Path]:
    """Return the files and directories that killed processes have left half-written."""
    drafts: list[Path] = []
    try:
        backend = artifact_backend_of(location.url, config)
    except EffllavaError:
        backend = None
    if isinstance(backend, DirectoryArtifactStore) and backend.path.is_dir():
        drafts += backend.path.glob(f".*{DRAFT_SUFFIX}")
    directory = location.export_directory(config)
    if directory is not None and directory.absolute().parent.is_dir():
        scratch = directory.absolute().parent.glob(f".{glob.escape(directory.name)}-*")
        drafts += (path for path in scratch if path.is_dir() and is_scratch(path, directory))
    files = [] if config.latency.table is None else [expand_home(config.latency.table)]
    files += [] if location.file is None else [location.file]
    for file in files:
        drafts += file.absolute().parent.glob(f".{glob.escape(file.name)}.*{DRAFT_SUFFIX}")
    return sorted(draft for draft in drafts if _is_abandoned(draft))


def _is_abandoned(path: Path) -> bool:
    """Return whether a file, or every file of a directory, was not written for an hour."""
    contents = [] if path.is_symlink() else path.rglob("*")
    try:
        return all(
            time.time() - file.lstat().st_mtime > _ABANDONED_SECONDS for file in (path, *contents)
        )
    except OSError:
        return False
