"""Studies without a model whose storage is torn in its last write, and then continued.

``torn.py URL SCRATCH STRIDE``: a process begins a study and dies. Every ``STRIDE``-th byte of the
last write to its storage is then the end of a copy, and a process continues each copy to the end.
What came out is printed as a line of JSON for each.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import optuna

from tests.search.faults import Toy, forked, outcome

TRIALS = 5  # measured before the process dies
_FRAME = 4096 + 24  # bytes in the write-ahead log of SQLite


def begin(url: str, scratch: Path) -> None:
    """Measure some trials, start another one, and die."""
    toy = Toy(url, scratch, lambda _: None)
    toy.sampler.queue_due_trials(toy.study)
    toy.study.optimize(toy.objective, n_trials=TRIALS)
    toy.sampler.queue_due_trials(toy.study)
    toy.objective(toy.study.ask())
    os._exit(0)  # without closing the database, which would empty its log


def last_write(directory: Path) -> tuple[Path, range]:
    """Return the file that the last write went to, and the lengths that are torn writes."""
    journal, log = directory / "a.log", directory / "a.db-wal"
    if journal.exists():
        size = journal.stat().st_size
        last = len(journal.read_bytes().splitlines(keepends=True)[-1])
        return journal, range(size - last, size)
    size = log.stat().st_size
    return log, range(size - _FRAME, size)


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url, scratch, stride = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    forked(partial(begin, url, scratch))
    file, lengths = last_write(scratch)
    for length in [*lengths[::stride], lengths[-1]]:
        copied = scratch.parent / f"torn-{length}"
        shutil.copytree(scratch, copied, ignore=shutil.ignore_patterns("*-shm"))
        os.truncate(copied / file.name, length)
        status, result = forked(partial(outcome, url.replace(str(scratch), str(copied)), copied))
        sys.stdout.write(json.dumps([length, status, result]) + "\n")
        sys.stdout.flush()
        shutil.rmtree(copied)


if __name__ == "__main__":
    main()
