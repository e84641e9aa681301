"""What a study runs on: its values are reproducible on the same, and on nothing else."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Any

import optuna
import torch
import transformers

from effllava_optuna import __version__
from effllava_optuna.errors import StudyError
from effllava_optuna.study.storage import CHANGES, MANIFEST
from effllava_optuna.surgery import fingerprint

if TYPE_CHECKING:
    from optuna import Study

    from effllava_optuna.study.workbench import Workbench


def environment() -> dict[str, Any]:
    """Give the versions of what computes, and of the machine."""
    return {
        "effllava_optuna": __version__,
        "optuna": optuna.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def manifest_of(bench: Workbench) -> dict[str, Any]:
    """Give what the values of a study depend on, beside its spec."""
    device = bench.loaded.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return environment() | {
        "device": name,
        "model": fingerprint(bench.loaded.model),
        "task": bench.task.digest,
        **bench.own.digests,
    }


def settle(study: Study, bench: Workbench, *, force: bool = False) -> None:
    """Write down what a study runs on; refuse to go on with it on something else.

    Args:
        study: The study; what it has recorded is kept.
        bench: The model as it was loaded, and the task.
        force: Go on all the same, and record in the study what has changed.

    Raises:
        StudyError: Something has changed; all of it is named.
    """
    stored, now = study.user_attrs.get(MANIFEST), manifest_of(bench)
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
        told = ", ".join(f"{name} was {old} and is {new}" for name, (old, new) in changed.items())
        raise StudyError(
            f"Study {study.study_name!r} was begun on something else: {told}.",
            hint="Restore it, or go on with --force: values before and after then differ.",
        )
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    study.set_user_attr(CHANGES, [*study.user_attrs.get(CHANGES, ()), {"at": when, **changed}])
