"""Check whether this machine can run a study."""

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

from effllava_optuna.checkpoint_format import has_video_part
from effllava_optuna.errors import ModelError
from effllava_optuna.storage.integrity import CheckResult
from effllava_optuna.torchvision_package import (
    find_misfit,
    install_command,
    torchvision_version,
)

if TYPE_CHECKING:
    from effllava_optuna.storage.integrity import State

_PACKAGE = "effllava-optuna"
_HUB_TIMEOUT = 3.0  # seconds
_MIN_DISK_GB = 1.0  # below, a study is unlikely to finish
_MIN_MEMORY_GB = 1.0
_PYTHON_VERSIONS = ">=3.11"


def check_machine(directory: Path, model: str | None = None) -> list[CheckResult]:
    """Check Python, packages, device, cores, memory, disk and the hub.

    Args:
        directory: Directory of the study.
        model: Path or hub id of its model; None: it is unknown.
    """
    return [
        _check_python(),
        *_check_packages(),
        _check_torchvision(model),
        *_check_device(),
        _check_cores(),
        _check_memory(),
        _check_disk(directory),
        _check_hub(),
    ]


def _check_python() -> CheckResult:
    version = platform.python_version()
    if version in SpecifierSet(_PYTHON_VERSIONS, prereleases=True):
        return CheckResult("python", "ok", version)
    return CheckResult("python", "fault", version, f"Use Python {_PYTHON_VERSIONS}.")


def _check_packages() -> list[CheckResult]:
    try:
        requirements = [Requirement(text) for text in metadata.requires(_PACKAGE) or ()]
    except metadata.PackageNotFoundError:
        cure = "Install it with pip, so that versions can be compared."
        return [CheckResult("packages", "warning", f"{_PACKAGE} is not installed", cure)]
    problems: list[CheckResult] = []
    n_correct = 0
    for requirement in requirements:
        if requirement.name == _PACKAGE:  # an extra that includes other extras
            continue
        optional = "extra" in str(requirement.marker or "")
        state: State = "warning" if optional else "fault"
        cure = f"Run `pip install '{requirement.name}{requirement.specifier}'`."
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            if not optional:
                missing = f"{requirement.name} is not installed"
                problems.append(CheckResult("packages", state, missing, cure))
            continue
        if requirement.specifier.contains(version, prereleases=True):
            n_correct += not optional
        else:
            wrong = f"{requirement.name} is {version}, not {requirement.specifier}"
            problems.append(CheckResult("packages", state, wrong, cure))
    return problems or [CheckResult("packages", "ok", f"{n_correct} are within their ranges")]


def _check_device() -> list[CheckResult]:
    import torch

    cuda_version = torch.version.cuda
    build = CheckResult("torch", "ok", f"{torch.__version__}, built for {cuda_version or 'CPUs'}")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return [build, CheckResult("device", "ok", ", ".join(names))]
    if cuda_version is None:
        return [build, CheckResult("device", "ok", "cpu")]
    cure = "Install a driver, or use model.device = 'cpu'."
    return [build, CheckResult("device", "warning", "no GPU, but torch is built for one", cure)]


def _check_torchvision(model: str | None) -> CheckResult:
    version, cure = torchvision_version(), f"Run `{install_command()}`."
    misfit = find_misfit()
    if misfit:
        return CheckResult("packages", "fault", misfit, cure)
    if version:
        return CheckResult("packages", "ok", f"torchvision {version} fits torch")
    try:
        needed = model is not None and has_video_part(model)
    except ModelError:  # there is no such model, which loading it says
        needed = False
    if needed:
        detail = f"torchvision is not installed, but the processor of {model!r} has a video part"
        return CheckResult("packages", "fault", detail, cure)
    detail = "torchvision is not installed; only processors with a video part need it"
    return CheckResult("packages", "ok", detail)


def _check_cores() -> CheckResult:
    import torch

    has_affinity = hasattr(os, "sched_getaffinity")  # on Linux
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    threads = torch.get_num_threads()
    if threads <= cores:
        return CheckResult("cores", "ok", f"{cores}; torch uses {threads} threads")
    cure = "Set OMP_NUM_THREADS to the number of cores."
    return CheckResult("cores", "warning", f"{cores}, but torch uses {threads} threads", cure)


def _check_memory() -> CheckResult:
    memory = psutil.virtual_memory()
    free_gb = memory.available / 1e9
    detail = f"{free_gb:.1f} of {memory.total / 1e9:.1f} GB are free"
    if free_gb >= _MIN_MEMORY_GB:
        return CheckResult("memory", "ok", detail)
    return CheckResult("memory", "warning", detail, "End other programs.")


def _check_disk(path: Path) -> CheckResult:
    directory = path.absolute()
    while not directory.is_dir() and directory != directory.parent:
        directory = directory.parent
    try:
        free_gb = shutil.disk_usage(directory).free / 1e9
    except OSError as error:
        return CheckResult("disk", "fault", f"{directory}: {error.strerror}", "Use another one.")
    if not os.access(directory, os.W_OK):
        cure = "Change its permissions, or use another directory."
        return CheckResult("disk", "warning", f"{directory} cannot be written", cure)
    if free_gb >= _MIN_DISK_GB:
        return CheckResult("disk", "ok", f"{free_gb:.1f} GB are free in {directory}")
    detail = f"{free_gb:.2f} GB are free in {directory}"
    return CheckResult("disk", "warning", detail, "Delete files that are not needed.")


def _check_hub() -> CheckResult:
    """Check whether the hub responds; any HTTP status will do."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return CheckResult("hub", "ok", "offline: models and data are read from this machine only")
    errors: list[str] = []

    def request_front_page() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_HUB_TIMEOUT):
                errors.append("")
        except urllib.error.HTTPError:
            errors.append("")
        except (OSError, ValueError) as error:
            errors.append(str(error))

    # In a thread, because the timeout does not cover the resolution of the host name.
    thread = threading.Thread(target=request_front_page, daemon=True)
    thread.start()
    thread.join(_HUB_TIMEOUT + 1)
    if errors == [""]:
        return CheckResult("hub", "ok", f"{constants.ENDPOINT} responds")
    reason = errors[0] if errors else f"no response in {_HUB_TIMEOUT:.0f} s"
    cure = "Use local models and data, and set HF_HUB_OFFLINE=1 to avoid timeouts."
    return CheckResult("hub", "warning", f"{constants.ENDPOINT} cannot be reached: {reason}", cure)
