"""The files of a study beside its database: tensors, and what the dashboard shows.

Only functions that write or read tensors import torch: reports only ask where the files are.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from optuna.artifacts import ArtifactMeta, Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from effllava_optuna.errors import StudyError, describe
from effllava_optuna.files import expand_home, write_atomically
from effllava_optuna.storage.storage_internals import storage_of, trial_id_of
from effllava_optuna.storage.urls import file_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from effllava_optuna.config.schema import StudyConfig


ArtifactBackend: TypeAlias = "DirectoryArtifactStore | Boto3ArtifactStore"

_BUCKET = re.compile(r"s3://(?P<name>[^/]+)/?")


def artifact_backend_of(url: str, config: StudyConfig) -> ArtifactBackend:
    """Return the directory or bucket of a study's artifacts.

    Names of artifacts are digests, so several studies may share one directory or bucket.

    Args:
        url: URL of the storage of the study; empty for a study in memory.
        config: Names a directory or ``s3://bucket``; the default is beside the database file.

    Raises:
        StudyError: The study is on a server and its config names no directory or bucket, or what
            the config names cannot be used.
    """
    location = config.study.artifacts
    if location is None:
        file = file_of(url) if url else None
        if file is None:
            raise StudyError(
                "study.artifacts is not set, and the study is not in a file.",
                hint="Set study.artifacts to a directory that all workers share, or to a bucket.",
            )
        return DirectoryArtifactStore(file.with_suffix(".artifacts"))
    if "://" not in location:
        return DirectoryArtifactStore(location)
    bucket = _BUCKET.fullmatch(location)
    if bucket is None:
        raise StudyError(
            f"study.artifacts = {location!r} is not a directory or a bucket.",
            hint="Use a directory, or s3://BUCKET without a path.",
        )
    try:
        return Boto3ArtifactStore(bucket["name"])
    except ImportError as error:
        raise StudyError(
            f"study.artifacts = {location!r} needs boto3.", hint="Install effllava-optuna[s3]."
        ) from error
    except Exception as error:  # errors of botocore cannot be named without botocore
        raise StudyError(
            f"study.artifacts = {location!r}: {error}",
            hint="Set AWS_DEFAULT_REGION and the credentials.",
        ) from error


class DirectoryArtifactStore(FileSystemArtifactStore):
    """Optuna's directory of artifacts, with files that are complete or do not exist.

    The dashboard serves hexadecimal names only, so the files have no suffixes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = expand_home(path)
        super().__init__(self.path)  # created by the first `write`

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write a file; it is on disk when this method returns."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / artifact_id, content_body.read())


class ArtifactStore:
    """Immutable files, most of them safetensors, each named by its SHA-256.

    Args:
        backend: The directory or bucket.
    """

    def __init__(self, backend: ArtifactBackend) -> None:
        self.backend = backend

    @property
    def _location(self) -> str:
        backend = self.backend
        if isinstance(backend, DirectoryArtifactStore):
            return str(backend.path)
        return f"s3://{backend.bucket}"

    def write_tensors(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Write tensors and return the name of their file.

        Raises:
            StudyError: The file cannot be written.
        """
        from safetensors.torch import save

        return self.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def write(self, content: bytes) -> str:
        """Write a file and return its name.

        Raises:
            StudyError: The file cannot be written.
        """
        name = hashlib.sha256(content).hexdigest()
        try:
            self.backend.write(name, io.BytesIO(content))
        except Exception as error:  # each backend has exceptions of its own
            raise StudyError(
                f"{self._location}: an artifact of {len(content):,} bytes cannot be written: "
                f"{_cause(error)}.",
                hint="Free disk space or grant access, then continue with `resume`.",
            ) from error
        return name

    def read_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Read the tensors that `write_tensors` wrote.

        Raises:
            StudyError: The file is missing, unreadable or damaged.
        """
        content = self._read(name, -1)
        if hashlib.sha256(content).hexdigest() != name:
            raise StudyError(
                f"{self._location}/{name}: the artifact is damaged (its SHA-256 has changed).",
                hint="Restore it from a copy, or start a new study.",
            )
        from safetensors.torch import load

        return load(content)

    def require(self, name: str) -> None:
        """Check that a file exists and can be read.

        Raises:
            StudyError: It is missing or unreadable.
        """
        self._read(name, 1)

    def _read(self, name: str, size: int) -> bytes:
        """Read the first ``size`` bytes of a file, or all of it."""
        try:
            with contextlib.closing(self.backend.open_reader(name)) as file:
                content: bytes = file.read(size)
        except ArtifactNotFound as error:
            raise StudyError(
                f"{self._location}/{name}: the artifact is missing.",
                hint="Keep the artifacts of a study with its database, under their name.",
            ) from error
        except Exception as error:
            raise StudyError(
                f"{self._location}/{name}: the artifact cannot be read: {_cause(error)}.",
                hint="Grant access to it, then continue with `resume`.",
            ) from error
        return content


def _cause(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or describe(error))


def attach_artifact(study: Study, trial: Trial | FrozenTrial, name: str, label: str) -> None:
    """List an artifact on the dashboard's page of a running trial, under a label."""
    meta = ArtifactMeta(name, label, "application/octet-stream", None)
    key, value = f"artifacts:{name}", json.dumps(asdict(meta))
    storage_of(study).set_trial_system_attr(trial_id_of(trial), key, value)


def finished_trial_attachment(
    trial_id: int, name: str, label: str, mimetype: str
) -> tuple[str, str]:
    """Return the system attribute of a study that lists an artifact on the page of a trial.

    A finished trial cannot get attributes; the dashboard also looks in its study.
    """
    meta = ArtifactMeta(name, label, mimetype, None)
    return f"dashboard:artifacts:{trial_id}:{name}", json.dumps(asdict(meta))
