"""Verify an exported checkpoint in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import transformers

from effllava_optuna.errors import ExportError
from effllava_optuna.surgery.export.comparison import ReloadDifference

if TYPE_CHECKING:
    from pathlib import Path

    from effllava_optuna.surgery.structure.loaded_model import LoadedModel

_PROGRAM = "effllava_optuna.surgery.export.verification"


def verify_in_fresh_process(pruned: LoadedModel, directory: Path, scratch: Path) -> dict[str, Any]:
    """Load a checkpoint in a fresh process and compare it with what `write_expected` wrote.

    Args:
        pruned: The model that was written.
        directory: The checkpoint.
        scratch: The directory with what is expected.

    Returns:
        ``parameters``, ``logit_difference``, ``generation_equal`` and ``loader``, as
        `VerifiedExport`.

    Raises:
        ExportError: The checkpoint does not load, or its weights, logits or tokens differ.
    """
    dtype = str(pruned.model.dtype).removeprefix("torch.")
    process = subprocess.run(
        [sys.executable, "-m", _PROGRAM, str(directory), str(scratch), str(pruned.device),
         dtype],
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",  # of a C library
        check=False,
        env=os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(scratch / "modules"),
            "PYTHONIOENCODING": "utf-8",  # not that of the user's terminal
        },
    )  # fmt: skip
    if process.returncode:
        last_line = (process.stderr.strip() or "no message").splitlines()[-1]
        raise ExportError(
            f"The export of {pruned.source} does not load in a fresh process: {last_line}",
            hint="Nothing was written.",
        )
    document: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    difference = ReloadDifference(**document["difference"])
    if not difference.is_none:
        raise ExportError(
            f"The export of {pruned.source} does not reload as the same model: {difference}.",
            hint=f"Nothing was written; transformers is {transformers.__version__}.",
        )
    return {
        "parameters": document["parameters"],
        "loader": tuple(document["loader"]),
        "logit_difference": difference.logits,
        "generation_equal": difference.generation_equal,
    }
