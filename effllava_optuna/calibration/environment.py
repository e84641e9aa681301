"""What the values of a study depend on: versions, machine, weights and samples."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Any

import optuna
import torch
import transformers

from effllava_optuna import __version__
from effllava_optuna.errors import StudyError
from effllava_optuna.storage.names import CHANGES, MANIFEST
from effllava_optuna.surgery import fingerprint

if TYPE_CHECKING:
    from optuna import Study

    from effllava_optuna.calibration.inputs import StudyInputs


def environment() -> dict[str, Any]:
    """Return the versions of the packages, and the machine."""
    return {
        "effllava_optuna": __version__,
        "optuna": optuna.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def manifest_of(inputs: StudyInputs) -> dict[str, Any]:
    """Return what the values of a study depend on beside its study file."""
    device = inputs.loaded.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return environment() | {
        "device": name,
        "model": fingerprint(inputs.loaded),
        "task": inputs.task.digest,
        **inputs.functions.digests,
    }


def check_environment(study: Study, inputs: StudyInputs, *, force: bool = False) -> None:
    """Record what the values of a study depend on; refuse to continue if that has changed.

    Args:
        study: The study; what it has recorded is kept.
        inputs: The model as it was loaded, and the task.
        force: Whether to continue nevertheless; the changes are recorded in the study.

    Raises:
        StudyError: Something has changed; the message lists all changes.
    """
    stored, now = study.user_attrs.get(MANIFEST), manifest_of(inputs)
    if stored is None:
        study.set_user_attr(MANIFEST, now)
        return
    changed = {
        name: [stored[name], value]
        for name, value in now.items()
        if name in stored and stored[name] != value
    }
    if not changed:
        return
    if not force:
        changes = ", ".join(
            f"{name} was {old} and is {new}" for name, (old, new) in changed.items()
        )
        raise StudyError(
            f"Study {study.study_name!r} began in another environment: {changes}.",
            hint="Restore it, or use --force: values from before and after then differ.",
        )
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    study.set_user_attr(CHANGES, [*study.user_attrs.get(CHANGES, ()), {"at": when, **changed}])
