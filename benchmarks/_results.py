"""Provenance of figures, and the files that they are published in."""

from __future__ import annotations

import json
import os
import platform
import re
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
PAGE = HERE / "RESULTS.md"
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
    """Return the commit, with ``-dirty`` if a file other than the results differs from it."""

    def git(*arguments: str) -> str:
        process = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, cwd=HERE.parent
        )
        return process.stdout.strip()

    sources = (".", ":!benchmarks/RESULTS.md", ":!benchmarks/results")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *sources)
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


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


def put_section(title: str, text: str, *, first: bool = False) -> None:
    """Write a section of ``RESULTS.md``; it replaces the section with the same title.

    Args:
        title: The heading.
        text: Content of the section.
        first: Whether the section goes before all others; otherwise a new one is appended.
    """
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else "# Results\n"
    head, *parts = re.split(r"^## ", page, flags=re.MULTILINE)
    sections = {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}
    section = {title: f"\n{text.strip()}\n\n"}
    others = {name: content for name, content in sections.items() if name != title}
    sections = section | others if first else sections | section
    body = "".join(f"## {name}\n{content}" for name, content in sections.items())
    write_atomically(PAGE, f"{head.rstrip()}\n\n{body.rstrip()}\n")


def write_figures(name: str, figures: Mapping[str, Any]) -> None:
    """Write figures to ``results/NAME.json``."""
    write_atomically(RESULTS / f"{name}.json", json.dumps(figures, indent=1) + "\n")


def publish(name: str, title: str, figures: Mapping[str, Any], text: str) -> None:
    """Write figures to ``results/NAME.json``, and print and write their section."""
    write_figures(name, figures)
    put_section(title, text)
    print(text)
