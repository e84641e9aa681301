"""Processes that publish the same epochs, some of which are killed.

``leaders.py URL SEED [WORKERS EPOCHS]``

The first processes that create an epoch are killed meanwhile, and others replace them. The seed
draws how many: an attempt fails with a probability of a quarter. The outcome is printed as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.control_study import ControlStudy, EpochPublication

WORKERS, EPOCHS, DEATHS = 8, 40, 0.25


def lead(url: str, seed: int, epochs: int, graves: Path) -> None:
    """Publish every epoch; check that a second reader sees the same attempts."""
    rng = np.random.default_rng([seed, os.getpid()])
    deaths = np.random.default_rng(seed).geometric(1 - DEATHS, epochs) - 1
    control_study = ControlStudy(open_storage(url), "toy")

    def create(epoch: int) -> EpochPublication:
        time.sleep(0.02 * rng.random())
        died = len([*graves.glob(f"{epoch}-*")])
        if died < deaths[epoch]:
            (graves / f"{epoch}-{died}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return EpochPublication(rng.random(), {"by": os.getpid()}, None)

    published = [
        control_study.publish_once(epoch, partial(create, epoch)) for epoch in range(epochs)
    ]
    read = ControlStudy(open_storage(url), "toy").published_epochs()
    assert [trial.number for trial in published] == [trial.number for trial in read]


def forked(url: str, seed: int, epochs: int, graves: Path) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            lead(url, seed, epochs, graves)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def run(url: str, seed: int, workers: int, epochs: int, graves: Path) -> dict[str, Any]:
    for _ in range(workers):
        forked(url, seed, epochs, graves)
    ended: Counter[int] = Counter()
    while ended[0] < workers:
        _, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        ended[code] += 1
        if code == -signal.SIGKILL:
            forked(url, seed, epochs, graves)
        elif code:
            break
    attempts = ControlStudy(open_storage(url), "toy").study.get_trials(deepcopy=False)
    return {
        "killed": ended.pop(-signal.SIGKILL, 0),
        "ended": {str(code): count for code, count in ended.items()},
        "epochs": [t.params["epoch"] for t in attempts if t.state == TrialState.COMPLETE],
        "open": sum(not attempt.state.is_finished() for attempt in attempts),
    }


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url, seed, workers, epochs = sys.argv[1], int(sys.argv[2]), WORKERS, EPOCHS
    if sys.argv[3:]:
        workers, epochs = map(int, sys.argv[3:])
    child = os.fork()  # a process that has opened a storage must not fork
    if child == 0:
        ControlStudy(open_storage(url, create=True), "toy")
        os._exit(0)
    os.waitpid(child, 0)
    with tempfile.TemporaryDirectory() as graves:
        sys.stdout.write(json.dumps(run(url, seed, workers, epochs, Path(graves))))


if __name__ == "__main__":
    main()
