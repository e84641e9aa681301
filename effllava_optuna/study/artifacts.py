"""Files beside the database, named by what is in them: tensors, and what the dashboard shows.

torch is imported by those who put or get tensors: reports only ask where the files are.
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
from effllava_optuna.files import write_atomically
from effllava_optuna.study.storage import file_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from optuna.storages import BaseStorage

    from effllava_optuna.study.spec import StudySpec


Store: TypeAlias = "Folder | Boto3ArtifactStore"

_BUCKET = re.compile(r"s3://(?P<name>[^/]+)/?")


def store_for(url: str, spec: StudySpec) -> Store:
    """Give where the artifacts of a study lie: as the spec says, else beside its file.

    Args:
        url: Of its storage; empty where there is none.
        spec: Names a directory or ``s3://bucket``. Names of artifacts are digests, so that
            several studies may share either.

    Raises:
        StudyError: The study is on a server, and its spec names no place; or it names one that
            cannot be used.
    """
    place = spec.study.artifacts
    if place is None:
        file = file_of(url) if url else None
        if file is None:
            raise StudyError(
                "There is no place for artifacts: the study is in no file.",
                hint="Set study.artifacts to a directory that all workers share, or to a bucket.",
            )
        return Folder(file.with_suffix(".artifacts"))
    if "://" not in place:
        return Folder(place)
    bucket = _BUCKET.fullmatch(place)
    if bucket is None:
        raise StudyError(
            f"study.artifacts = {place!r} is no place for artifacts.",
            hint="Use a directory, or s3://BUCKET without a path.",
        )
    try:
        return Boto3ArtifactStore(bucket["name"])
    except ImportError as error:
        raise StudyError(
            f"study.artifacts = {place!r} needs boto3.", hint="Install effllava-optuna[s3]."
        ) from error
    except Exception as error:  # botocore's errors are not to be had without botocore
        raise StudyError(
            f"study.artifacts = {place!r}: {error}", hint="Set AWS_DEFAULT_REGION and the like."
        ) from error


class Folder(FileSystemArtifactStore):
    """Optuna's directory of artifacts, in which a file is there as a whole or not at all.

    The dashboard serves hexadecimal names only, hence no suffixes.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.path = Path(path)  # made when something is put there

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Store a file; it is on disk when this returns."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / artifact_id, content_body.read())


class Vault:
    """Files, most of them safetensors, each named by its SHA-256; none is ever changed.

    Args:
        store: Where they are kept.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def _place(self) -> str:
        store = self.store
        return str(store.path) if isinstance(store, Folder) else f"s3://{store.bucket}"

    def put(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Store ``tensors`` and give their name; they are safe when this returns.

        Raises:
            StudyError: They cannot be written.
        """
        from safetensors.torch import save

        return self.keep(save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def keep(self, content: bytes) -> str:
        """Store a file as `put` does.

        Raises:
            StudyError: It cannot be written.
        """
        name = hashlib.sha256(content).hexdigest()
        try:
            self.store.write(name, io.BytesIO(content))
        except Exception as error:  # each store has a family of its own
            raise StudyError(
                f"{self._place}: an artifact of {len(content):,} bytes cannot be written: "
                f"{_cause(error)}.",
                hint="Make room or give access, then continue with `resume`.",
            ) from error
        return name

    def get(self, name: str) -> dict[str, torch.Tensor]:
        """Read what `put` stored under ``name``.

        Raises:
            StudyError: It is missing or not what it was.
        """
        try:
            with contextlib.closing(self.store.open_reader(name)) as file:
                content = file.read()
        except ArtifactNotFound as error:
            raise StudyError(
                f"{self._place}/{name}: the artifact is missing.",
                hint="Keep the artifacts of a study with its database, under their name.",
            ) from error
        except Exception as error:
            raise StudyError(
                f"{self._place}/{name}: the artifact cannot be read: {_cause(error)}.",
                hint="Give access to it, then continue with `resume`.",
            ) from error
        if hashlib.sha256(content).hexdigest() != name:
            raise StudyError(
                f"{self._place}/{name}: the artifact is damaged (its SHA-256 is another).",
                hint="Restore it from a copy, or start a new study.",
            )
        from safetensors.torch import load

        return load(content)


def _cause(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or describe(error))


def show(storage: BaseStorage, trial_id: int, name: str, label: str) -> None:
    """Let the dashboard list artifact ``name`` with a trial, as ``label``."""
    meta = ArtifactMeta(name, label, "application/octet-stream", None)
    storage.set_trial_system_attr(trial_id, f"artifacts:{name}", json.dumps(asdict(meta)))


def shown_with(trial_id: int, name: str, label: str, mimetype: str) -> tuple[str, str]:
    """Give the attribute of a study by which the dashboard lists an artifact with a trial.

    A trial that has ended takes no attributes any more; the dashboard looks in its study, too.
    """
    meta = ArtifactMeta(name, label, mimetype, None)
    return f"dashboard:artifacts:{trial_id}:{name}", json.dumps(asdict(meta))
