"""Read and write policy.json, which identifies an exported checkpoint and how it was pruned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from effllava_optuna.errors import ModelError, shorten
from effllava_optuna.export_target import POLICY_FILE
from effllava_optuna.files import read_text
from effllava_optuna.policy import ComponentId
from effllava_optuna.surgery.structure.loaded_model import PruningRecord

_FORMAT = 2
_KEYS_OF_FORMAT_1 = ("anatomy", "order", "sites")


def write_policy(directory: Path, document: dict[str, Any]) -> None:
    """Write policy.json."""
    content = {"format": _FORMAT, **document}
    text = json.dumps(content, indent=2) + "\n"
    (directory / POLICY_FILE).write_text(text, encoding="utf-8")


def read_policy(directory: str | Path) -> dict[str, Any]:
    """Read policy.json.

    Raises:
        ModelError: There is none, or it has the format of another version.
    """
    file = Path(directory) / POLICY_FILE
    try:
        document = json.loads(read_text(file))
    except (OSError, ValueError) as error:
        reason = "" if isinstance(error, FileNotFoundError) else f" ({error})"
        raise ModelError(
            f"{directory} has no readable {POLICY_FILE}{reason}.",
            hint="Use a directory that effllava_optuna exported.",
        ) from error
    if not isinstance(document, dict):
        raise ModelError(f"{file} is not a JSON object.", hint="Export the checkpoint again.")
    file_format = document.get("format")
    if file_format == _FORMAT:
        return document
    old_keys = [repr(key) for key in _KEYS_OF_FORMAT_1 if key in document]
    keys = f" with the keys {', '.join(old_keys)} of an older version" if old_keys else ""
    raise ModelError(
        f"{file} has format {shorten(file_format)}{keys}; this version reads format {_FORMAT}.",
        hint="Export the checkpoint again, or use the version of effllava_optuna that wrote it.",
    )


def pruning_record(document: dict[str, Any]) -> PruningRecord | None:
    """Return how a model was pruned, from the content of policy.json; None: it was not."""
    if "components" not in document:
        return None
    return PruningRecord(
        base_model=document["base_model"],
        structure=document["structure"],
        importance=document["importance"],
        kept={
            ComponentId(component): (entry["kept"], entry["of"])
            for component, entry in document["components"].items()
        },
    )
