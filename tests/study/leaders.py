"""Processes that all want every epoch, and some of which die over one: ``leaders.py URL SEED``.

Whoever makes an epoch dies in the middle of it with a probability of a quarter; another process
takes its place. What happened is printed as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from effllava_optuna.study.ledger import Ledger, Publication
from effllava_optuna.study.storage import open_storage

WORKERS, EPOCHS, DEATHS = 8, 40, 0.25


def lead(url: str, seed: int) -> None:
    """Want every epoch; check that all that is read was read before."""
    rng = np.random.default_rng([seed, os.getpid()])
    ledger = Ledger(open_storage(url), "toy")

    def make() -> Publication:
        time.sleep(0.02 * rng.random())
        if rng.random() < DEATHS:
            os.kill(os.getpid(), signal.SIGKILL)
        return Publication(rng.random(), {"by": os.getpid()}, None)

    found = [ledger.publish(epoch, make) for epoch in range(EPOCHS)]
    again = Ledger(open_storage(url), "toy").epochs()
    assert [trial.number for trial in found] == [trial.number for trial in again]


def forked(url: str, seed: int) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            lead(url, seed)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def run(url: str, seed: int) -> dict[str, Any]:
    for _ in range(WORKERS):
        forked(url, seed)
    ended: Counter[int] = Counter()
    while ended[0] < WORKERS:
        _, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        ended[code] += 1
        if code == -signal.SIGKILL:
            forked(url, seed)
        elif code:
            break
    attempts = Ledger(open_storage(url), "toy").study.get_trials(deepcopy=False)
    return {
        "killed": ended.pop(-signal.SIGKILL, 0),
        "ended": {str(code): count for code, count in ended.items()},
        "epochs": [t.params["epoch"] for t in attempts if t.state == TrialState.COMPLETE],
        "open": sum(not attempt.state.is_finished() for attempt in attempts),
    }


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url, seed = sys.argv[1], int(sys.argv[2])
    child = os.fork()  # whoever has opened a storage must not fork workers
    if child == 0:
        Ledger(open_storage(url, create=True), "toy")
        os._exit(0)
    os.waitpid(child, 0)
    sys.stdout.write(json.dumps(run(url, seed)))


if __name__ == "__main__":
    main()
