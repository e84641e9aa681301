"""Check where an export is to be written, before anything is computed for it."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from effllava_optuna.errors import ExportError
from effllava_optuna.files import expand_home, read_text, why_unwritable, write_errors_as

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ExportForm = Literal["native", "portable", "onnx", "gguf", "gguf-q8_0", "gguf-f32"]
"""What an export is: a checkpoint, or files of another format, with the type of their matrices."""

EXPORT_FORMS: tuple[ExportForm, ...] = get_args(ExportForm)
"""Every form of an export."""

POLICY_FILE = "policy.json"
"""File of an export that says how it was pruned."""

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""Packages that ONNX exports need."""

CHECKSUMS_FILE = "checksums.json"
"""File of an export with the SHA-256 of its other files."""


def is_export(path_or_id: str | Path) -> bool:
    """Return whether ``path_or_id`` is a directory that any version of `export` wrote."""
    try:
        document = json.loads(read_text(Path(path_or_id) / POLICY_FILE))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and {"format", "effllava_optuna"} <= set(document)


def check_export_directory(directory: str | Path, *, overwrite: bool) -> None:
    """Check that an export can be written to a directory, as far as that is known before.

    Args:
        directory: Created with its parents if it does not exist.
        overwrite: Whether an earlier export may be replaced.

    Raises:
        ExportError: The directory is not empty, it has files that no export wrote, it is where a
            file system is mounted, or it cannot be created.
    """
    target = resolve_target(directory)
    with write_errors_as(ExportError, target, hint="Choose another directory."):
        occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and not (overwrite and is_export(target)):
        raise ExportError(
            f"{directory} is not empty.",
            hint="Choose another directory, or allow overwriting an earlier export.",
        )
    added = _added_file(target) if occupied else ""
    if added:
        raise ExportError(
            f"{directory} cannot be overwritten: {added} is not of the earlier export.",
            hint="Move that file, or choose another directory.",
        )
    if os.path.ismount(target):  # it cannot be replaced by a finished export
        raise ExportError(
            f"{directory} is where a file system is mounted.", hint="Choose a directory in it."
        )
    _refuse_unwritable(directory, target)


def resolve_target(path: str | Path) -> Path:
    """Return the absolute path of an export, without symbolic links.

    Raises:
        ExportError: No file can have this path.
    """
    try:
        return expand_home(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, or a null byte
        raise ExportError(
            f"{str(path)!r} cannot be written: {error}.", hint="Choose another place."
        ) from error


def _added_file(directory: Path) -> str:
    """Return a file in an export that it did not write; empty if there is none."""
    try:
        checksums = json.loads(read_text(directory / CHECKSUMS_FILE))
        written = {*checksums.keys(), CHECKSUMS_FILE}
    except (AttributeError, OSError, ValueError):  # the list is damaged or of an older version
        return ""
    for file in sorted(directory.rglob("*")):
        name = str(file.relative_to(directory))
        if name not in written and not file.is_dir() and "__pycache__" not in file.parts:
            return name
    return ""


def check_onnx_file(path: str | Path, *, overwrite: bool) -> None:
    """Check that an ONNX export can be written to a file, as far as that is known before.

    Args:
        path: Its directory is created with its parents if it does not exist.
        overwrite: Whether an existing file may be replaced.

    Raises:
        ExportError: The file exists, or it cannot be created, or a package is missing.
    """
    require_packages("ONNX", "onnx", ONNX_PACKAGES)
    _check_file(path, onnx_weights_file, overwrite=overwrite)


def check_gguf_file(path: str | Path, *, overwrite: bool) -> None:
    """Check that a GGUF export can be written to a file; as `check_onnx_file`."""
    require_packages("GGUF", "gguf", ("gguf",))
    _check_file(path, pictures_file, overwrite=overwrite)


def require_packages(form: str, extra: str, packages: Sequence[str]) -> None:
    """Check that the packages of a form are installed.

    Args:
        form: The form, for the message.
        extra: The extra of this package that installs them.
        packages: Names of packages that are imported.

    Raises:
        ExportError: One of them is not installed.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ExportError(
                f"{form} needs {package}, which is not installed.",
                hint=f"Run `pip install 'effllava-optuna[{extra}]'`.",
            )


def _check_file(path: str | Path, companion: Callable[[Path], Path], *, overwrite: bool) -> None:
    target = resolve_target(path)
    with write_errors_as(ExportError, target, hint="Choose another name."):
        exists = target.exists() or companion(target).exists()
        is_directory = target.is_dir()
    if is_directory or (exists and not overwrite):
        raise ExportError(
            f"{path} exists already.",
            hint="Choose another name, or allow overwriting an earlier export.",
        )
    _refuse_unwritable(path, target)


def onnx_weights_file(path: Path) -> Path:
    """Return the file beside an ONNX export that holds its weights if they are large."""
    return path.with_name(f"{path.name}.data")


def pictures_file(path: Path) -> Path:
    """Return the file beside a GGUF export that holds its vision tower and projector."""
    return path.with_name(f"mmproj-{path.name}")


def _refuse_unwritable(path: str | Path, target: Path) -> None:
    """Refuse a target beside which nothing can be created: there an export is completed."""
    reason = why_unwritable(target.with_name(f".{target.name}-"))
    if reason:
        raise ExportError(f"{path} cannot be written: {reason}.", hint="Choose another place.")
