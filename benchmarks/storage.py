"""What does a trial cost the storage? ``python benchmarks/storage.py --postgresql URL``.

Milliseconds from asking for a trial of 64 genes to telling its result, of our samplers and of
Optuna's NSGA-II under the same pragmas, after 100, 1,000 and 3,000 trials; and how long a fresh
process takes from opening the storage to the end of its first trial, imports excluded. Rounds of
all samplers alternate, each in a process of its own, on copies of one study. Storages are a SQLite
file, a journal file, and, where a server is given, PostgreSQL: ``--postgresql
postgresql+psycopg://user@host`` without a database.

Leaves ``benchmarks/results/storage.json`` and a section of ``benchmarks/RESULTS.md``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from _results import HERE, provenance, publish
from optuna.distributions import IntDistribution
from optuna.samplers import NSGAIISampler
from optuna.trial import TrialState, create_trial

from effllava_optuna.samplers import (
    EpochCMASampler,
    EpochNSGAIISampler,
    EpochSampler,
    Seed,
    write_user_attrs,
)
from effllava_optuna.study.storage import open_storage

GENES, POPULATION, BUDGET = 64, 20, 300.0
LEVELS = (1, 2, 4, 6, 8, 12, 16)
SIZES = (100, 1000, 3000)
ROUNDS = 2
NAME = "cost"
FOUND = {"accuracy": 0.5, "expected": 0.4, "log_probability": -1.0, "hits": "01" * 32}


@dataclass(frozen=True)
class Space:
    """Genes with a few widths each; see `effllava_optuna.samplers.SpaceView`."""

    epoch: int = 0
    budget: float | None = BUDGET
    seeds: Sequence[Seed] = ()
    levels: Mapping[str, Sequence[int]] = field(
        default_factory=lambda: {f"layer.{gene:02}": LEVELS for gene in range(GENES)}
    )
    stamp: Mapping[str, Any] = field(default_factory=lambda: {"basis": "0" * 64})

    @property
    def distributions(self) -> dict[str, IntDistribution]:
        """Give every gene the same range."""
        return {name: IntDistribution(1, LEVELS[-1]) for name in self.levels}

    @property
    def costs(self) -> dict[str, list[float]]:
        """Let a width cost what it is."""
        return {name: [float(level) for level in LEVELS] for name in self.levels}

    def describe(self, params: Mapping[str, int]) -> dict[str, Any]:
        """Say what a study says of a policy."""
        return {"keep": list(params.values()), "kept_share": 0.5, "risk": 1.0}


def values_of(params: Mapping[str, int]) -> tuple[float, float]:
    """Measure nothing much."""
    widths = np.array(list(params.values()), dtype=np.float64)
    return float((widths / (widths + 4)).sum()), float(widths.sum())


MAKE: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "nsga2": lambda: EpochNSGAIISampler(lambda _: Space(), population_size=POPULATION),
    "cma": lambda: EpochCMASampler(lambda _: Space(), population_size=POPULATION),
    "stock": lambda: NSGAIISampler(population_size=POPULATION, seed=0),
}


def fill(url: str, trials: int) -> None:
    """Bring a study to a number of complete trials, as our sampler and Optuna's would find it."""
    study = optuna.create_study(
        storage=open_storage(url, create=True), study_name=NAME,
        directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(),
        load_if_exists=True,
    )  # fmt: skip
    space = Space()
    for number in range(len(study.get_trials(deepcopy=False)), trials):
        generation, index = divmod(number, POPULATION)
        rng = np.random.default_rng(number)
        params = {name: int(rng.choice(LEVELS[:5])) for name in space.levels}
        place = {"epoch": 0, "generation": generation, "index": index, "attempt": 0}
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                params=params,
                distributions=dict(space.distributions),
                values=list(values_of(params)),
                user_attrs={
                    **space.stamp, **space.describe(params), **FOUND, **place, "kind": "child",
                },
                system_attrs={
                    "constraints": [sum(params.values()) - BUDGET],
                    "NSGAIISampler:generation": generation,
                },
            )
        )  # fmt: skip


def measure(url: str, who: str, trials: int) -> dict[str, Any]:
    """Go on with a study; give the seconds until its first trial is told, and ms of the others."""
    began = time.perf_counter()
    sampler = MAKE[who]()
    study = optuna.load_study(storage=open_storage(url), study_name=NAME, sampler=sampler)
    space, waiting = Space(), 0
    spent = []
    for _ in range(trials + 1):
        start = time.perf_counter()
        if isinstance(sampler, EpochSampler) and not waiting:
            waiting = sampler.write_due(study)
        trial = study.ask()
        params = {
            name: trial.suggest_int(name, distribution.low, distribution.high)
            for name, distribution in space.distributions.items()
        }
        write_user_attrs(study, trial._trial_id, FOUND)
        study.tell(trial, values_of(params))
        waiting -= 1
        spent.append(1000 * (time.perf_counter() - start))
        if len(spent) == 1:
            resumed = time.perf_counter() - began
    return {"resume_s": resumed, "trial_ms": float(np.mean(spent[1:]))}


class File:
    """Studies in files.

    Args:
        scheme: ``sqlite`` or ``journal``.
        work: Directory.
    """

    def __init__(self, scheme: str, work: Path) -> None:
        self.scheme, self.work = scheme, work

    def url(self, name: str) -> str:
        """Give the URL of a study."""
        return f"{self.scheme}:///{self.work / f'{name}.{self.scheme}'}"

    def copy(self, name: str, to: str) -> None:
        """Copy a study that nobody has open."""
        source, target = (self.work / f"{each}.{self.scheme}" for each in (name, to))
        for old in self.work.glob(f"{target.name}*"):
            old.unlink()
        if self.scheme == "sqlite":
            with (
                closing(sqlite3.connect(source)) as there,
                closing(sqlite3.connect(target)) as mine,
            ):
                there.backup(mine)
        else:
            shutil.copy(source, target)


class Server:
    """Studies in databases of a PostgreSQL server.

    Args:
        url: Of the server, without a database.
    """

    def __init__(self, url: str) -> None:
        self.server = url.rstrip("/")
        self.admin = sqlalchemy.create_engine(
            f"{self.server}/postgres", isolation_level="AUTOCOMMIT"
        )
        self._do("drop database if exists cost_base")
        self._do("create database cost_base")

    def url(self, name: str) -> str:
        """Give the URL of a study."""
        return f"{self.server}/cost_{name}"

    def copy(self, name: str, to: str) -> None:
        """Copy a study that nobody has open."""
        self._do(f"drop database if exists cost_{to}")
        self._do(f"create database cost_{to} template cost_{name}")

    def _do(self, statement: str) -> None:
        with self.admin.connect() as connection:
            connection.exec_driver_sql(statement)


def child(*words: object) -> Any:
    """Let a fresh process fill or measure."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *map(str, words)],
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def run(
    kind: str, place: File | Server, sizes: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """Measure all samplers at all sizes in one storage, in turn."""
    rows = []
    for size in sizes:
        child("--fill", place.url("base"), size)
        found: dict[str, list[dict[str, float]]] = {who: [] for who in MAKE}
        for _ in range(rounds):
            for who, mine in found.items():
                place.copy("base", who)
                mine.append(child("--measure", place.url(who), who, POPULATION))
        for who, mine in found.items():
            row = {"storage": kind, "trials": size, "sampler": who, "rounds": mine}
            for key in ("trial_ms", "resume_s"):
                row[key] = float(np.mean([one[key] for one in mine]))
            rows.append(row)
            print(kind, size, who, f"{row['trial_ms']:.0f} ms, resume {row['resume_s']:.1f} s")
    return rows


def section(rows: Sequence[Mapping[str, Any]], where: Mapping[str, Any]) -> str:
    """Write the section of ``RESULTS.md``."""
    cells = {(row["storage"], row["trials"], row["sampler"]): row for row in rows}
    lines = [
        "| storage | trials before | NSGA-II, ms | CMA-ES, ms | Optuna's NSGA-II, ms | ratio "
        "| resume NSGA-II, s | resume CMA-ES, s | resume Optuna's, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def spread(row: Mapping[str, Any], key: str, digits: int) -> str:
        each = [one[key] for one in row["rounds"]]
        return f"{row[key]:.{digits}f} ({min(each):.{digits}f}-{max(each):.{digits}f})"

    for storage, trials in dict.fromkeys((row["storage"], row["trials"]) for row in rows):
        ours, cma, stock = (cells[storage, trials, who] for who in MAKE)
        ratios = [
            one["trial_ms"] / mine["trial_ms"]
            for one, mine in zip(stock["rounds"], ours["rounds"], strict=True)
        ]
        lines.append(
            f"| {storage} | {trials:,} | "
            + " | ".join(spread(row, "trial_ms", 0) for row in (ours, cma, stock))
            + f" | {np.mean(ratios):.1f} | "
            + " | ".join(spread(row, "resume_s", 1) for row in (ours, cma, stock))
            + " |"
        )
    return f"""Generated by `python benchmarks/storage.py`; do not edit.

Milliseconds from asking for a trial of {GENES} genes to telling its result, generations written
and attributes stored included, over {POPULATION} trials; resume: seconds from opening the storage
to the end of the first trial, imports excluded. Mean of {len(rows[0]["rounds"])} rounds, in which
the samplers take turns (smallest-largest); ratio: Optuna's NSGA-II against ours, mean of the
rounds. SQLite and its pragmas are the same for all.

{chr(10).join(lines)}

{where["cpu"]}, {where["cores"]} shared cores; optuna {where["optuna"]}; {where["date"]}.
"""


def main(words: Sequence[str] | None = None) -> None:
    """Measure, or do one step of it in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgresql", help="URL of a server, without a database")
    parser.add_argument("--work", type=Path, default=HERE / "scratch" / "storage")
    parser.add_argument("--tiny", action="store_true", help="seconds; writes nothing")
    parser.add_argument("--fill", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if arguments.fill:
        url, size = arguments.fill
        fill(url, int(size))
        print("null")
        return
    if arguments.measure:
        url, who, trials = arguments.measure
        print(json.dumps(measure(url, who, int(trials))))
        return
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    places: dict[str, File | Server] = {
        "SQLite": File("sqlite", arguments.work),
        **({} if arguments.tiny else {"journal": File("journal", arguments.work)}),
    }
    if arguments.postgresql:
        places["PostgreSQL"] = Server(arguments.postgresql)
    origin = provenance()
    sizes, rounds = ((20,), 1) if arguments.tiny else (SIZES, ROUNDS)
    rows = [row for kind, place in places.items() for row in run(kind, place, sizes, rounds)]
    if arguments.tiny:
        shutil.rmtree(arguments.work)
        print(section(rows, origin))
        return
    found = {"rows": rows, "provenance": origin}
    publish("storage", "Cost of a trial", found, section(rows, origin))


if __name__ == "__main__":
    main()
