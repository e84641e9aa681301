"""Run what RESULTS.md is made of, small: ``python benchmarks/all.py --small``.

The six scripts of evidence in their small forms, and the tiny forms of those that measure speed,
memory and storage, several at a time. Records and tables go to ``--out``; published results
stay as they are. Without ``--small`` the six scripts run in full, one after the other: hours, and
``benchmarks/RESULTS.md`` changes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from _results import HERE

if TYPE_CHECKING:
    from collections.abc import Sequence

EVIDENCE = ("overfit", "risk", "projector", "evolution", "ablation", "transfer")
OTHERS = (
    "compensation", "trial_cost", "latency_model", "memory", "peers", "speedup", "storage",
    "workers",
)  # fmt: skip


def ran(name: str, words: Sequence[str], out: Path) -> tuple[str, int, float]:
    """Run a script; what it says goes to a file."""
    began = time.monotonic()
    command = [sys.executable, "-W", "ignore", str(HERE / f"{name}.py"), *words]
    with (out / f"{name}.log").open("w") as log:
        done = subprocess.run(command, check=False, stdout=log, stderr=subprocess.STDOUT)
    return name, done.returncode, time.monotonic() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the scripts; say which have failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "scratch" / "small")
    parser.add_argument("--jobs", type=int, default=2, help="scripts at a time")
    parser.add_argument("--only", nargs="+", choices=(*EVIDENCE, *OTHERS))
    told = parser.parse_args(arguments)
    if not told.small:
        for name in told.only or EVIDENCE:
            subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=True)
        return
    told.out.mkdir(parents=True, exist_ok=True)
    (told.out / "RESULTS.md").unlink(missing_ok=True)
    small = ["--small", "--out", str(told.out)]
    # The longest first; `overfit` and `risk` share a pool, so that one makes it.
    todo: list[tuple[str, list[str]]] = [(name, small) for name in EVIDENCE if name != "overfit"]
    todo += [(name, ["--tiny"]) for name in OTHERS]
    if told.only:
        todo = [(name, words) for name, words in todo if name in told.only]
    print(f"About 5 minutes on two cores for {len(todo) + 1} scripts; logs in {told.out}.")
    failed = []
    with ThreadPoolExecutor(told.jobs) as pool:
        done = list(pool.map(lambda job: ran(job[0], job[1], told.out), todo))
    if not told.only or "overfit" in told.only:
        done.append(ran("overfit", small, told.out))
    for name, code, seconds in done:
        print(f"{name}: {'done' if code == 0 else 'failed'} after {seconds:.0f} s")
        failed += [name] if code else []
    if failed:
        raise SystemExit(f"See {', '.join(str(told.out / f'{name}.log') for name in failed)}.")


if __name__ == "__main__":
    main()
