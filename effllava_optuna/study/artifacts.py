"""Tensors beside the database: files named by what is in them.

torch is imported by those who put or get tensors: reports only ask where the files are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.artifacts import ArtifactMeta

from effllava_optuna.errors import StudyError
from effllava_optuna.study.storage import file_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from optuna.storages import BaseStorage

    from effllava_optuna.study.spec import StudySpec


def directory_for(url: str, spec: StudySpec) -> Path:
    """Give the artifact directory of a study: as the spec says, else beside the file.

    Raises:
        StudyError: The study is on a server, and its spec names no directory.
    """
    if spec.study.artifacts is not None:
        return Path(spec.study.artifacts)
    file = file_of(url) if url else None
    if file is None:
        raise StudyError(
            "There is no place for artifacts: the study is in no file.",
            hint="Set study.artifacts to a directory that all workers share.",
        )
    return file.with_suffix(".artifacts")


class Vault:
    """A directory of safetensors files, each named by its SHA-256; none is ever changed.

    The layout is that of Optuna's ``FileSystemArtifactStore``, so that the dashboard finds them;
    it serves hexadecimal names only, hence no suffix.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """Store ``tensors`` and give their name; the file is on disk when this returns.

        Raises:
            StudyError: It cannot be written.
        """
        from safetensors.torch import save

        content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        name = hashlib.sha256(content).hexdigest()
        place = self.directory / name
        draft = place.with_suffix(f".{os.getpid()}.part")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(place)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise StudyError(
                f"{self.directory}: an artifact of {len(content):,} bytes cannot be written: "
                f"{error.strerror}.",
                hint="Make room, then continue with `resume`.",
            ) from error
        return name

    def get(self, name: str) -> dict[str, torch.Tensor]:
        """Read what `put` stored under ``name``.

        Raises:
            StudyError: The file is missing or not what it was.
        """
        place = self.directory / name
        try:
            content = place.read_bytes()
        except OSError as error:
            raise StudyError(
                f"{place}: the artifact is missing.",
                hint="Keep the artifacts directory beside the database, under its name.",
            ) from error
        if hashlib.sha256(content).hexdigest() != place.name:
            raise StudyError(
                f"{place}: the artifact is damaged (its SHA-256 is another).",
                hint="Restore it from a copy, or start a new study.",
            )
        from safetensors.torch import load

        return load(content)


def show(storage: BaseStorage, trial_id: int, name: str, label: str) -> None:
    """Let the dashboard list artifact ``name`` with a trial, as ``label``."""
    meta = ArtifactMeta(name, label, "application/octet-stream", None)
    storage.set_trial_system_attr(trial_id, f"artifacts:{name}", json.dumps(asdict(meta)))
