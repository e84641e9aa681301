"""Run the scripts behind the results in their small forms: ``python benchmarks/all.py --small``.

These are the small forms of the scripts that compare studies, and the tiny forms of those that
measure speed, memory and storage, several at a time. Records and tables go to ``--out``; published
results do not change. Without ``--small`` these scripts run in full, one after the other: this
takes hours, and changes ``benchmarks/tables`` and ``benchmarks/RESULTS.md``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from _results import HERE

if TYPE_CHECKING:
    from collections.abc import Sequence

EVIDENCE = (
    "overfit", "risk", "projector", "evolution", "ablation", "transfer", "agreement",
    "visual_tokens", "token_budgets",
)  # fmt: skip
OTHERS = (
    "compensation", "importance_time", "trial_cost", "latency_model", "memory", "peers", "speedup",
    "storage", "workers",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finished:
    """A script that has ended.

    Attributes:
        name: Name of the script.
        code: Exit code.
        seconds: Wall time.
    """

    name: str
    code: int
    seconds: float


def run_script(name: str, options: Sequence[str], out: Path) -> Finished:
    """Run a script; its output goes to ``NAME.log`` in ``out``."""
    started = time.monotonic()
    command = [sys.executable, "-W", "ignore", str(HERE / f"{name}.py"), *options]
    with (out / f"{name}.log").open("w") as log:
        process = subprocess.run(command, check=False, stdout=log, stderr=subprocess.STDOUT)
    return Finished(name, process.returncode, time.monotonic() - started)


def run_small(names: Sequence[str], out: Path, jobs: int) -> list[Finished]:
    """Run the smaller forms of scripts, ``jobs`` at a time."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "RESULTS.md").unlink(missing_ok=True)
    options = {name: ["--small", "--out", str(out)] for name in EVIDENCE} | {
        name: ["--tiny"] for name in OTHERS
    }
    # `overfit` and `risk` share a pool: `overfit` runs last, when `risk` has measured it.
    parallel = [name for name in options if name in names and name != "overfit"]
    with ThreadPoolExecutor(jobs) as executor:
        finished = list(executor.map(lambda name: run_script(name, options[name], out), parallel))
    if "overfit" in names:
        finished.append(run_script("overfit", options["overfit"], out))
    return finished


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the scripts, and list those that have failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "scratch" / "small")
    parser.add_argument("--jobs", type=int, default=2, help="scripts at a time")
    parser.add_argument("--only", nargs="+", choices=(*EVIDENCE, *OTHERS))
    options = parser.parse_args(arguments)
    if not options.small:
        for name in options.only or EVIDENCE:
            subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=True)
        return
    names = options.only or (*EVIDENCE, *OTHERS)
    print(f"About 5 minutes on two cores for {len(names)} scripts; logs in {options.out}.")
    finished = run_small(names, options.out, options.jobs)
    for each in finished:
        print(f"{each.name}: {'failed' if each.code else 'done'} after {each.seconds:.0f} s")
    logs = [str(options.out / f"{each.name}.log") for each in finished if each.code]
    if logs:
        raise SystemExit(f"See {', '.join(logs)}.")


if __name__ == "__main__":
    main()
