"""Look whether this machine can run a study."""

from __future__ import annotations

import os
import platform
import shutil
import threading
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from effllava_optuna.study.integrity import Finding

if TYPE_CHECKING:
    from effllava_optuna.study.integrity import State

_PACKAGE = "effllava-optuna"
_PATIENCE = 3.0  # seconds for the hub to answer
_LEAST_DISK, _LEAST_MEMORY = 1.0, 1.0  # GB, below which a study is not likely to end well
_OLDEST_PYTHON = ">=3.11"


def examine_machine(place: Path) -> list[Finding]:
    """Look at Python, packages, device, cores, memory, disk and hub.

    Args:
        place: Where the study is, or would be.
    """
    return [
        _python(),
        *_packages(),
        *_device(),
        _memory(),
        _disk(place),
        _hub(),
    ]


def _python() -> Finding:
    version = platform.python_version()
    if version in SpecifierSet(_OLDEST_PYTHON, prereleases=True):
        return Finding("python", "ok", version)
    return Finding("python", "fault", version, f"Use Python {_OLDEST_PYTHON}.")


def _packages() -> list[Finding]:
    try:
        needed = [Requirement(text) for text in metadata.requires(_PACKAGE) or ()]
    except metadata.PackageNotFoundError:
        cure = "Install it with pip, so that versions can be compared."
        return [Finding("packages", "warning", f"{_PACKAGE} is not installed", cure)]
    wrong: list[Finding] = []
    right = 0
    for requirement in needed:
        optional = "extra" in str(requirement.marker or "")
        if requirement.name == _PACKAGE:
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if not optional:
                cure = f"pip install '{requirement.name}{requirement.specifier}'"
                wrong.append(Finding("packages", "fault", f"{requirement.name} is missing", cure))
            continue
        if requirement.specifier.contains(version, prereleases=True):
            right += not optional
        else:
            state: State = "warning" if optional else "fault"
            cure = f"pip install '{requirement.name}{requirement.specifier}'"
            found = f"{requirement.name} is {version}, not {requirement.specifier}"
            wrong.append(Finding("packages", state, found, cure))
    return wrong or [Finding("packages", "ok", f"{right} are within their ranges")]


def _device() -> list[Finding]:
    import torch

    build = torch.version.cuda
    found = [Finding("torch", "ok", f"{torch.__version__}, built for {build or 'CPUs'}")]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found.append(Finding("device", "ok", ", ".join(names)))
    elif build is not None:
        cure = "Install a driver, or run with model.device = 'cpu'."
        found.append(Finding("device", "warning", "no GPU, though torch is built for one", cure))
    else:
        found.append(Finding("device", "ok", "cpu"))
    limited = hasattr(os, "sched_getaffinity")  # on Linux
    cores = len(os.sched_getaffinity(0)) if limited else os.cpu_count() or 1
    threads = torch.get_num_threads()
    if threads <= cores:
        found.append(Finding("cores", "ok", f"{cores}; torch uses {threads} threads"))
    else:
        cure = "Set OMP_NUM_THREADS to the number of cores."
        told = f"{cores}, but torch uses {threads} threads"
        found.append(Finding("cores", "warning", told, cure))
    return found


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    told = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB are free"
    if memory.available / 1e9 >= _LEAST_MEMORY:
        return Finding("memory", "ok", told)
    return Finding("memory", "warning", told, "End other programs.")


def _disk(place: Path) -> Finding:
    folder = place.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        return Finding("disk", "fault", f"{folder}: {error.strerror}", "Use another folder.")
    if not os.access(folder, os.W_OK):
        cure = "Give yourself the right to write, or use another folder."
        return Finding("disk", "warning", f"{folder} cannot be written", cure)
    if free >= _LEAST_DISK:
        return Finding("disk", "ok", f"{free:.1f} GB are free in {folder}")
    return Finding("disk", "warning", f"{free:.2f} GB are free in {folder}", "Make room.")


def _hub() -> Finding:
    """Ask the hub for its front page; whatever it says, it is there."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "ok", "offline: models and data are read from this machine only")
    answers: list[str] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
            with urllib.request.urlopen(request, timeout=_PATIENCE):
                answers.append("")
        except urllib.error.HTTPError:
            answers.append("")
        except (OSError, ValueError) as error:
            answers.append(str(error))

    asking = threading.Thread(target=ask, daemon=True)  # names may take long to resolve
    asking.start()
    asking.join(_PATIENCE + 1)
    if answers == [""]:
        return Finding("hub", "ok", f"{constants.ENDPOINT} answers")
    told = answers[0] if answers else f"no answer in {_PATIENCE:.0f} s"
    cure = "Use local models and data, and set HF_HUB_OFFLINE=1 so that nobody waits for it."
    return Finding("hub", "warning", f"{constants.ENDPOINT} cannot be reached: {told}", cure)
