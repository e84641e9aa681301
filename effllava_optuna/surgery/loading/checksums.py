"""Write and check the SHA-256 of the files of an exported checkpoint."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from effllava_optuna.errors import ModelError
from effllava_optuna.export_target import CHECKSUMS_FILE
from effllava_optuna.files import read_text

if TYPE_CHECKING:
    from pathlib import Path


def write_checksums(directory: Path) -> None:
    """Write the SHA-256 of every file of ``directory`` to checksums.json."""
    checksums = {
        str(file.relative_to(directory)): _sha256(file)
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.name != CHECKSUMS_FILE
    }
    text = json.dumps(checksums, indent=2) + "\n"
    (directory / CHECKSUMS_FILE).write_text(text, encoding="utf-8")


def check_checksums(directory: Path) -> None:
    """Check that no file of ``directory`` is missing or changed; added files are allowed.

    Raises:
        ModelError: A file is missing or changed (the first is named), or checksums.json is.
    """
    hint = "Copy or export the checkpoint again."
    try:
        checksums = json.loads(read_text(directory / CHECKSUMS_FILE))
        expected = dict(checksums.items())
    except (AttributeError, OSError, ValueError) as error:
        raise ModelError(f"{directory} has no readable {CHECKSUMS_FILE}.", hint=hint) from error
    for name, checksum in expected.items():
        file = directory / name
        if not file.is_file():
            raise ModelError(f"{file} is missing.", hint=hint)
        if _sha256(file) != checksum:
            raise ModelError(f"{file} is not the file that was exported.", hint=hint)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
