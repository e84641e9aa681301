"""What tells that a directory is ours, and that it is whole: policy.json and checksums.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from effllava_optuna.errors import ModelError

POLICY = "policy.json"
_SUMS = "checksums.json"
_FORMAT = 1


def seal(directory: Path) -> None:
    """Write the SHA-256 of every file of ``directory``."""
    sums = {
        str(file.relative_to(directory)): _digest(file)
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.name != _SUMS
    }
    (directory / _SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def check_seal(directory: Path) -> None:
    """Refuse a directory of which a file is missing, cut short or changed.

    Files that were added do not matter.

    Raises:
        ModelError: With the first such file.
    """
    cure = "Copy or export the checkpoint again."
    try:
        sums = json.loads((directory / _SUMS).read_text(encoding="utf-8"))
        entries = dict(sums.items())
    except (AttributeError, OSError, ValueError) as error:
        raise ModelError(f"{directory} has no {_SUMS} that can be read.", hint=cure) from error
    for name, expected in entries.items():
        file = directory / name
        if not file.is_file():
            raise ModelError(f"{file} is missing.", hint=cure)
        if _digest(file) != expected:
            raise ModelError(f"{file} is not the file that was exported.", hint=cure)


def write_policy(directory: Path, document: dict[str, Any]) -> None:
    """Write policy.json."""
    content = {"format": _FORMAT, **document}
    (directory / POLICY).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_policy(directory: str | Path) -> dict[str, Any]:
    """Read policy.json.

    Raises:
        ModelError: There is none that this version understands.
    """
    file = Path(directory) / POLICY
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{directory} has no {POLICY} that can be read.",
            hint="Give a directory that effllava_optuna wrote.",
        ) from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ModelError(
            f"{file} is not of format {_FORMAT}.",
            hint="Use the version of effllava_optuna that wrote it.",
        )
    return document


def is_ours(place: str | Path) -> bool:
    """Tell whether ``place`` is a directory that `export` wrote."""
    try:
        return bool(read_policy(place))
    except ModelError:
        return False


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
