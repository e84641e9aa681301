"""Whether torchvision, which processors with a video part need, is installed and fits torch.

Each build of torch has a torchvision of its own. The one on PyPI does not fit the build of torch
for CPUs: importing it raises "operator torchvision::nms does not exist", and then transformers
imports no processor at all (transformers issue 48558).
"""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from importlib.util import find_spec

from effllava_optuna.errors import ModelError, describe

_NAME = "torchvision"
_PATTERN = r"2\.(\d+)\.(\d+)\+?(\w*)"  # a version of torch
_MINOR_OFFSET = 15  # torchvision 0.28 belongs to torch 2.13
_WHEELS = "https://download.pytorch.org/whl"


def torchvision_version() -> str:
    """Return the version of torchvision; empty if it is not installed."""
    if find_spec(_NAME) is None:
        return ""
    try:
        return metadata.version(_NAME)
    except metadata.PackageNotFoundError:
        return "of an unknown version"


def find_misfit() -> str:
    """Return why the installed torchvision cannot be used; empty if it can, or there is none.

    It is imported, with torch.
    """
    version = torchvision_version()
    if not version:
        return ""
    try:
        importlib.import_module(_NAME)
    except Exception as error:  # of a library that was compiled for another torch
        return (
            f"torchvision {version} does not fit torch {metadata.version('torch')} "
            f"({describe(error)})"
        )
    return ""


def install_command(torch_version: str | None = None) -> str:
    """Return the command that installs the torchvision of a build of torch.

    Args:
        torch_version: Version of torch; None: that of the installed one.

    Example:
        >>> install_command("2.13.0+cpu")
        'pip install torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu'
        >>> install_command("2.9.1")
        'pip install torchvision==0.24.1'
    """
    match = re.fullmatch(_PATTERN, torch_version or metadata.version("torch"))
    if match is None:
        return f"pip install torchvision --index-url {_WHEELS}/cpu"
    minor, patch, build = match.groups()
    index = f" --index-url {_WHEELS}/{build}" if build else ""
    return f"pip install torchvision==0.{int(minor) + _MINOR_OFFSET}.{patch}{index}"


def require_torchvision(source: str) -> None:
    """Check that torchvision is installed, for a checkpoint whose processor has a video part.

    Raises:
        ModelError: It is not.
    """
    if not torchvision_version():
        raise ModelError(
            f"The processor of {source!r} has a video part, and torchvision, which it needs, is "
            "not installed.",
            hint=f"Run `{install_command()}`.",
        )
