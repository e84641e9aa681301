"""Provenance of figures, and the files that they are stored in."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from effllava_optuna.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent
RESULTS = HERE / "results"
_PACKAGES = ("torch", "transformers", "optuna", "numpy")


def provenance(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return versions, machine, commit and date of a measurement on ``device``."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    processors = [line for line in cpuinfo if "model name" in line]
    gpu = {}
    if torch.device(device).type == "cuda":
        gpu = {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return gpu | {
        **{name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "cpu": processors[0].partition(":")[2].strip() if processors else platform.processor(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str:
    """Return the commit, with ``-dirty`` if a file other than the results differs from it.

    A copy of the tree without its history has the commit that ``BENCHMARK_COMMIT`` names.
    """

    def git(*arguments: str) -> str:
        process = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, cwd=HERE.parent
        )
        return process.stdout.strip()

    generated = ("RESULTS.md", "LEARNED.md", "tables", "results")
    sources = (".", *(f":!benchmarks/{name}" for name in generated))
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *sources)
    commit = git("rev-parse", "--short", "HEAD")
    if not commit:  # a copy of the tree without its history
        return os.environ.get("BENCHMARK_COMMIT", "unknown")
    return commit + ("-dirty" if changed else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def origin_line(origin: Mapping[str, Any]) -> str:
    """Return one line with the machine, the versions and the date of a provenance."""
    machine = origin.get("gpu") or f"{origin['cpu']}, {origin['cores']} shared cores"
    versions = ", ".join(
        f"{name} {origin[name]}" for name in ("torch", "transformers") if origin.get(name)
    )
    return f"{machine}; {versions}; {origin['date']}."


def write_figures(name: str, figures: Mapping[str, Any]) -> None:
    """Write figures to ``results/NAME.json``."""
    write_atomically(RESULTS / f"{name}.json", json.dumps(figures, indent=1) + "\n")
