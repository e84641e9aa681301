"""Studies without a model that are killed at given points.

Each line on standard input is a JSON list: a storage URL, a scratch directory and points. Point
``2 n`` is right before the ``n``-th change of the storage is made durable, point ``2 n + 1`` right
after. The study is run once for each point, in a forked process that dies there, and then once
more to the end; what came out is printed as a line of JSON. Without points it says how many
changes an undisturbed study makes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import TrialState

from effllava_optuna.samplers import (
    EpochNSGAIISampler,
    Seed,
    effective_trials,
    epoch_finished,
    fail_lost_trials,
    slot_of,
    write_user_attrs,
)
from effllava_optuna.storage.artifact_store import attach_artifact
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.control_study import ControlStudy, EpochPublication
from effllava_optuna.storage.storage_internals import backend_of
from tests.samplers.toy import DIRECTIONS, ToySpace, digest, measure, suggest

EPOCHS, GENERATIONS, POPULATION = 2, 2, 4
TRIALS = EPOCHS * GENERATIONS * POPULATION
LEVELS = {f"g{i}": (1, 2, 4, 8) for i in range(3)}


class Toy:
    """SearchSession without a model: what an epoch has is a number and a file that holds it."""

    def __init__(self, url: str, scratch: Path, watch: Callable[[Any], None]) -> None:
        storage = open_storage(url, create=True)
        watch(storage)
        self.scratch = scratch
        self.study = optuna.create_study(
            storage=storage, study_name="toy", directions=DIRECTIONS, load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),
        )  # fmt: skip
        self.control_study = ControlStudy(storage, "toy/projector")
        self.sampler = EpochNSGAIISampler(self.space, population_size=POPULATION)
        self.study.sampler = self.sampler
        self.control_study.publish_once(0, lambda: self.made(0))

    def made(self, epoch: int) -> EpochPublication:
        trials = [
            t for t in effective_trials(self.study.get_trials(deepcopy=False)).values() if t.values
        ]
        best = sorted(trials, key=lambda trial: -trial.values[0])[:2]
        seeds = [{"params": trial.params, "origin": trial.number} for trial in best]
        weight_state = sum(trial.values[0] for trial in best)
        return EpochPublication(
            weight_state,
            {"weight_state": weight_state, "seeds": seeds},
            self.put(f"{weight_state}"),
        )

    def put(self, content: str) -> str:
        name = content.encode().hex()
        draft = self.scratch / f"{name}.part"
        draft.write_text(content)
        draft.rename(self.scratch / name)
        return name

    @property
    def epoch(self) -> int:
        return len(self.control_study.published_epochs()) - 1

    def epoch_finished(self, epoch: int) -> bool:
        trials = self.study.get_trials(deepcopy=False)
        return epoch_finished(trials, epoch, population_size=POPULATION, generations=GENERATIONS)

    def advance(self) -> None:
        epoch = self.epoch
        if epoch + 1 < EPOCHS and self.epoch_finished(epoch):
            self.control_study.publish_once(epoch + 1, lambda: self.made(epoch + 1))

    def space(self, _: optuna.Study) -> ToySpace:
        self.advance()
        facts = self.control_study.published_epochs()[self.epoch].user_attrs
        seeds = tuple(Seed(s["params"], "reeval", s["origin"]) for s in facts["seeds"])
        return ToySpace(
            LEVELS,
            epoch=self.epoch,
            budget=18.0,
            seeds=seeds,
            stamp={"weight_state": facts["weight_state"]},
        )

    def objective(self, trial: optuna.Trial) -> tuple[float, float]:
        weight_state = trial.user_attrs["weight_state"]
        quality, size = measure(suggest(trial, ToySpace(LEVELS)))
        name = self.put(f"{trial.number} {weight_state}")
        attach_artifact(self.study, trial, name, "policy")
        write_user_attrs(self.study, trial, {"accuracy": quality, "artifact": name})
        return quality + weight_state / 10, size

    @property
    def finished(self) -> bool:
        last = EPOCHS - 1
        return self.epoch == last and self.epoch_finished(last)

    def run(self) -> None:
        fail_lost_trials(self.study, grace_seconds=0)  # nobody else is starting a trial
        self.advance()
        while not self.finished:
            self.sampler.queue_due_trials(self.study)
            self.study.optimize(self.objective, n_trials=1)
            self.advance()


class Reaper:
    """Kills this process at a point; counts changes until then. Other threads do not count."""

    def __init__(self, point: int | None) -> None:
        self.point, self.changes = point, 0

    def around(self, durable: Callable[..., Any], *rest: Any, **named: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return durable(*rest, **named)
        self.die_at(2 * self.changes)
        result = durable(*rest, **named)
        self.die_at(2 * self.changes + 1)
        self.changes += 1
        return result

    def die_at(self, point: int) -> None:
        if point == self.point:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, storage: Any) -> None:
        """Put this around whatever makes a change durable."""
        backend = backend_of(storage)
        engine = getattr(backend, "engine", None)
        if engine is None:
            append = backend.append_logs
            backend.append_logs = lambda logs: self.around(append, logs)
            return
        changed = threading.local()

        @sqlalchemy.event.listens_for(engine, "before_cursor_execute")
        def execute(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
                changed.yes = True

        commit = engine.dialect.do_commit

        def committed(connection: Any) -> None:
            if getattr(changed, "yes", False):
                changed.yes = False
                self.around(commit, connection)
            else:
                commit(connection)

        engine.dialect.do_commit = committed


def forked(work: Callable[[], Any]) -> tuple[int, Any]:
    """Run ``work`` in a forked process; give its exit status and what it returned."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        with suppress(BaseException):
            os.close(reader)
            with os.fdopen(writer, "w") as pipe:
                json.dump(work(), pipe)
            status = 0
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


def disturbed(url: str, scratch: Path, point: int | None) -> dict[str, int]:
    reaper = Reaper(point)
    Toy(url, scratch, reaper.watch).run()
    return {"changes": reaper.changes}


def outcome(url: str, scratch: Path) -> dict[str, Any]:
    toy = Toy(url, scratch, lambda _: None)
    toy.run()
    trials = toy.study.get_trials(deepcopy=False)
    measured = Counter(str(slot_of(t)) for t in trials if t.state == TrialState.COMPLETE)
    attempts = toy.control_study.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {
        "digest": digest(toy.study),
        "slots": len(measured),
        "twice": sum(count > 1 for count in measured.values()),
        "epochs": sorted(attempt.params["epoch"] for attempt in attempts),
        "open": sum(not trial.state.is_finished() for trial in trials),
        "dangling": sum(
            not (scratch / trial.user_attrs["artifact"]).is_file()
            for trial in [*trials, *attempts]
            if "artifact" in trial.user_attrs
        ),
    }


def followed(url: str, scratch: Path, points: list[int]) -> dict[str, Any]:
    statuses, counts = [], None
    killed: list[int | None] = [*points]
    for point in killed or [None]:
        status, counts = forked(partial(disturbed, url, scratch, point))
        statuses.append(status)
    status, found = forked(partial(outcome, url, scratch))
    return {"statuses": statuses, "end": status, "counts": counts, "found": found}


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.storages.RDBStorage("sqlite://")  # imports what every forked process would import
    for line in sys.stdin:
        url, scratch, points = json.loads(line)
        sys.stdout.write(json.dumps(followed(url, Path(scratch), points)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
