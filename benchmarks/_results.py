"""What the scripts that measure share: where a figure comes from, and where it is written."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"


_PACKAGES = ("torch", "transformers", "optuna", "numpy")


def provenance(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Say what ran where."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    where, found = torch.device(device), {}
    if where.type == "cuda":
        found = {"gpu": torch.cuda.get_device_name(where), "cuda": torch.version.cuda}
    return found | {
        **{name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str:
    """Give the commit, and whether something differs from it but for results."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, check=False, cwd=HERE.parent
        )
        return done.stdout.strip()

    rest = (".", ":!benchmarks/RESULTS.md", ":!benchmarks/results")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *rest)
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def told(origin: dict[str, Any]) -> str:
    """Say in a line on what figures were measured."""
    where = origin.get("gpu") or f"{origin['cpu']}, {origin['cores']} shared cores"
    versions = ", ".join(
        f"{name} {origin[name]}" for name in ("torch", "transformers") if origin.get(name)
    )
    return f"{where}; {versions}; {origin['date']}."


def put_section(title: str, text: str, *, first: bool = False) -> None:
    """Write a section of ``RESULTS.md``, in place of the one with the same title, or the last.

    Args:
        title: Of the section.
        text: What it says.
        first: Put it before all others.
    """
    place = HERE / "RESULTS.md"
    found = place.read_text(encoding="utf-8") if place.is_file() else "# Results\n"
    head, *sections = re.split(r"^## ", found, flags=re.MULTILINE)
    kept = {section.partition("\n")[0]: section.partition("\n")[2] for section in sections}
    mine = {title: f"\n{text.strip()}\n\n"}
    kept = (
        mine | {name: old for name, old in kept.items() if name != title}
        if first
        else (kept | mine)
    )
    body = "".join(f"## {name}\n{kept[name]}" for name in kept)
    place.write_text(f"{head.rstrip()}\n\n{body.rstrip()}\n", encoding="utf-8")


def publish(name: str, title: str, found: dict[str, Any], text: str) -> None:
    """Write figures to ``results/NAME.json``, and their section, which is printed, too."""
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    put_section(title, text)
    print(text)
