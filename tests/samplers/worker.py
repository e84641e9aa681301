"""A process that works on a study: ``worker.py URL SCRATCH TRIALS KILL_AT``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import optuna

from tests.samplers.toy import objective_of, open_study, sampler_of, toy_space

SPACE = toy_space(genes=3)
POPULATION = 4


def study_at(url: str) -> optuna.Study:
    return open_study(url, sampler_of(SPACE, population_size=POPULATION))


def work(url: str, n_trials: int, *, kill_at: int = 0) -> list[int]:
    """Measure trials and return their numbers; kill this process in the ``kill_at``-th trial."""
    inner, started, measured = objective_of(SPACE), [0], []

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        started.append(trial.number)
        if len(started) - 1 == kill_at:
            trial.suggest_int("g0", 1, 16)
            os.kill(os.getpid(), signal.SIGKILL)
        values: tuple[float, float] = inner(trial)
        time.sleep(0.02)
        measured.append(trial.number)
        return values

    study_at(url).optimize(objective, n_trials=n_trials, catch=(RuntimeError,))
    return measured


if __name__ == "__main__":
    url, scratch, n_trials, kill_at = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
    (scratch / "ready").touch()
    (scratch / "measured").write_text(str(len(work(url, n_trials, kill_at=kill_at))))
