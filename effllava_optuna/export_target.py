"""Check where an export is to be written, before anything is computed for it."""

from __future__ import annotations

import json
from pathlib import Path

from effllava_optuna.errors import ExportError
from effllava_optuna.files import expand_home, read_text, why_unwritable, write_errors_as

POLICY_FILE = "policy.json"
"""File of an export that says how it was pruned."""


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
        ExportError: The directory is not empty, or it cannot be created.
    """
    target = expand_home(directory).resolve()
    with write_errors_as(ExportError, target, hint="Choose another directory."):
        occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and not (overwrite and is_export(target)):
        raise ExportError(
            f"{directory} is not empty.",
            hint="Choose another directory, or allow overwriting an earlier export.",
        )
    _refuse_unwritable(directory, target)


def check_onnx_file(path: str | Path, *, overwrite: bool) -> None:
    """Check that an ONNX export can be written to a file, as far as that is known before.

    Args:
        path: Its directory is created with its parents if it does not exist.
        overwrite: Whether an existing file may be replaced.

    Raises:
        ExportError: The file exists, or it cannot be created.
    """
    target = expand_home(path).resolve()
    with write_errors_as(ExportError, target, hint="Choose another name."):
        exists = target.exists() or onnx_weights_file(target).exists()
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


def _refuse_unwritable(path: str | Path, target: Path) -> None:
    """Refuse a target beside which nothing can be created: there an export is completed."""
    reason = why_unwritable(target.with_name(f".{target.name}-"))
    if reason:
        raise ExportError(f"{path} cannot be written: {reason}.", hint="Choose another place.")
