"""How long does the storage take for a trial? ``python benchmarks/storage.py --postgresql URL``.

Milliseconds from ``ask`` to the end of ``tell`` for a trial of 64 genes, of our samplers and of
Optuna's NSGA-II with the same pragmas, after 100, 1,000 and 3,000 trials; and the time of a new
process from opening the storage to the end of its first trial, imports excluded. Rounds of all
samplers alternate, each in a process of its own, on copies of one study. Storages are a SQLite
file, a journal file, and PostgreSQL if a server is given: ``--postgresql
postgresql+psycopg://user@host`` without a database.

Leaves ``benchmarks/results/storage.json`` and a page in ``benchmarks/tables``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from _means import markdown
from _pages import publish
from _results import HERE, provenance
from _sentences import joined, paragraph, value_range
from _storages import FileStorage, ServerStorage
from optuna.distributions import IntDistribution
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from effllava_optuna.samplers import (
    Allocation,
    EpochCMASampler,
    EpochNSGAIISampler,
    EpochSampler,
    Seed,
    write_user_attrs,
)
from effllava_optuna.storage.connection import open_storage

GENES, POPULATION, BUDGET = 64, 20, 300.0
LEVELS = (1, 2, 4, 6, 8, 12, 16)
SIZES = (100, 1000, 3000)
ROUNDS = 2
NAME = "cost"
MEASURED = {
    "accuracy": 0.5, "expected": 0.4, "log_probability": -1.0, "hits": [0, 1] * 32,
    "quality_scores": [0.4321] * 64,
}  # fmt: skip


@dataclass(frozen=True)
class Space:
    """Genes with a few widths each; see `effllava_optuna.samplers.SpaceView`."""

    epoch: int = 0
    budget: float | None = BUDGET
    seeds: Sequence[Seed] = ()
    allocation: Allocation | None = None
    levels: Mapping[str, Sequence[int]] = field(
        default_factory=lambda: {f"layer.{gene:02}": LEVELS for gene in range(GENES)}
    )
    stamp: Mapping[str, Any] = field(default_factory=lambda: {"weight_state": "0" * 64})

    @property
    def distributions(self) -> dict[str, IntDistribution]:
        """Return the same distribution for every gene."""
        return {name: IntDistribution(1, LEVELS[-1]) for name in self.levels}

    @property
    def costs(self) -> dict[str, list[float]]:
        """Return the width as the cost of each level."""
        return {name: [float(level) for level in LEVELS] for name in self.levels}

    def known_values(self, params: Mapping[str, int]) -> tuple[None, float]:
        """Return the second objective."""
        return None, values_of(params)[1]

    def is_comparable(self, trial: FrozenTrial) -> bool:
        """Return whether a trial has the weight state of the space."""
        return bool(trial.user_attrs["weight_state"] == self.stamp["weight_state"])

    def describe(self, params: Mapping[str, int]) -> dict[str, Any]:
        """Return user attributes like those of a study."""
        return {"widths": list(params.values()), "keep_ratio": 0.5, "risk": 1.0}


def values_of(params: Mapping[str, int]) -> tuple[float, float]:
    """Compute two objective values from the widths."""
    widths = np.array(list(params.values()), dtype=np.float64)
    return float((widths / (widths + 4)).sum()), float(widths.sum())


SAMPLERS: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "nsga2": lambda: EpochNSGAIISampler(lambda _: Space(), population_size=POPULATION),
    "cma": lambda: EpochCMASampler(lambda _: Space(), population_size=POPULATION),
    "stock": lambda: NSGAIISampler(population_size=POPULATION, seed=0),
}


def fill(url: str, trials: int) -> None:
    """Add complete trials to a study, with the attributes of our samplers and of Optuna's."""
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
        slot = {"epoch": 0, "generation": generation, "index": index, "attempt": 0}
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                params=params,
                distributions=dict(space.distributions),
                values=list(values_of(params)),
                user_attrs={
                    **space.stamp, **space.describe(params), **MEASURED, **slot, "kind": "child",
                },
                system_attrs={
                    "constraints": [sum(params.values()) - BUDGET],
                    "NSGAIISampler:generation": generation,
                },
            )
        )  # fmt: skip


def measure(url: str, name: str, trials: int) -> dict[str, Any]:
    """Continue a study; return seconds to the end of its first trial, and ms of the others.

    Args:
        url: URL of the storage.
        name: Name of the sampler.
        trials: Number of trials after the first one.
    """
    opened = time.perf_counter()
    sampler = SAMPLERS[name]()
    study = optuna.load_study(storage=open_storage(url), study_name=NAME, sampler=sampler)
    space, waiting = Space(), 0
    trial_ms = []
    for _ in range(trials + 1):
        started = time.perf_counter()
        if isinstance(sampler, EpochSampler) and not waiting:
            waiting = sampler.queue_due_trials(study)
        trial = study.ask()
        params = {
            name: trial.suggest_int(name, distribution.low, distribution.high)
            for name, distribution in space.distributions.items()
        }
        write_user_attrs(study, trial, MEASURED)
        study.tell(trial, values_of(params))
        waiting -= 1
        trial_ms.append(1000 * (time.perf_counter() - started))
        if len(trial_ms) == 1:
            resume_s = time.perf_counter() - opened
    return {"resume_s": resume_s, "trial_ms": float(np.mean(trial_ms[1:]))}


def run_child(*arguments: object) -> Any:
    """Run a step in a process of its own, and return its result."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *map(str, arguments)],
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return json.loads(process.stdout)


def measure_storage(
    name: str, storage: FileStorage | ServerStorage, sizes: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """Measure all samplers with studies of all sizes in one storage, in turn."""
    rows = []
    for size in sizes:
        run_child("--fill", storage.url("base"), size)
        by_sampler: dict[str, list[dict[str, float]]] = {sampler: [] for sampler in SAMPLERS}
        for _ in range(rounds):
            for sampler, figures in by_sampler.items():
                storage.copy("base", sampler)
                figures.append(run_child("--measure", storage.url(sampler), sampler, POPULATION))
        for sampler, figures in by_sampler.items():
            row = {"storage": name, "trials": size, "sampler": sampler, "rounds": figures}
            for key in ("trial_ms", "resume_s"):
                row[key] = float(np.mean([each[key] for each in figures]))
            rows.append(row)
            times = f"{row['trial_ms']:.0f} ms, resume {row['resume_s']:.1f} s"
            print(name, size, sampler, times)
    return rows


def ratio_of(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Return how many times as long theirs takes, the mean of the rounds."""
    rounds = zip(ours["rounds"], theirs["rounds"], strict=True)
    return float(np.mean([other["trial_ms"] / own["trial_ms"] for own, other in rounds]))


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the main figures: the ranges over storages and sizes of the study."""
    ours, _, stock = ([row for row in rows if row["sampler"] == name] for name in SAMPLERS)
    own, theirs = (value_range((row["trial_ms"] for row in each), ".0f") for each in (ours, stock))
    ratios = [ratio_of(row, other) for row, other in zip(ours, stock, strict=True)]
    return paragraph(f"""
        Sampling and storing a trial takes {own} ms with our NSGA-II and {theirs} ms with Optuna's,
        {value_range(ratios, ".1f")} times as long, in
        {joined(dict.fromkeys(row["storage"] for row in rows), ",")}, with up to
        {max(row["trials"] for row in rows):,} trials before it.""")


def section(rows: Sequence[Mapping[str, Any]], origin: Mapping[str, Any]) -> str:
    """Format the page of the benchmark."""
    cells = {(row["storage"], row["trials"], row["sampler"]): row for row in rows}

    def spread(row: Mapping[str, Any], key: str, digits: int) -> str:
        values = [figures[key] for figures in row["rounds"]]
        return f"{row[key]:.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"

    lines = []
    for storage, trials in dict.fromkeys((row["storage"], row["trials"]) for row in rows):
        ours, cma, stock = (cells[storage, trials, sampler] for sampler in SAMPLERS)
        lines.append(
            [
                storage,
                f"{trials:,}",
                *(spread(row, "trial_ms", 0) for row in (ours, cma, stock)),
                f"{ratio_of(ours, stock):.1f}",
                *(spread(row, "resume_s", 1) for row in (ours, cma, stock)),
            ]
        )
    head = [
        "storage", "trials before", "NSGA-II, ms", "CMA-ES, ms", "Optuna's NSGA-II, ms", "ratio",
        "resume NSGA-II, s", "resume CMA-ES, s", "resume Optuna's, s",
    ]  # fmt: skip
    return f"""{summary(rows)}

Generated by `python benchmarks/storage.py`; do not edit. Figures:
[results](../results/storage.json).

Milliseconds from `ask` to the end of `tell` for a trial of {GENES} genes, generations and
attributes included, over {POPULATION} trials; resume: seconds from opening the storage to the end
of the first trial, imports excluded. Mean of {len(rows[0]["rounds"])} rounds, in which the
samplers alternate (smallest-largest); ratio: Optuna's NSGA-II to ours, mean of the rounds. SQLite
and its pragmas are the same for all.

{markdown(head, lines)}

{origin["cpu"]}, {origin["cores"]} shared cores; optuna {origin["optuna"]}; {origin["date"]}.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or run one step in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--postgresql", help="URL of a server, without a database")
    parser.add_argument("--work", type=Path, default=HERE / "scratch" / "storage")
    parser.add_argument("--tiny", action="store_true", help="run for seconds; publish nothing")
    parser.add_argument("--fill", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.fill:
        url, size = options.fill
        fill(url, int(size))
        print("null")
        return
    if options.measure:
        url, sampler, trials = options.measure
        print(json.dumps(measure(url, sampler, int(trials))))
        return
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    storages: dict[str, FileStorage | ServerStorage] = {
        "SQLite": FileStorage("sqlite", options.work),
        **({} if options.tiny else {"journal": FileStorage("journal", options.work)}),
    }
    if options.postgresql:
        storages["PostgreSQL"] = ServerStorage(options.postgresql)
    origin = provenance()
    sizes, rounds = ((20,), 1) if options.tiny else (SIZES, ROUNDS)
    rows = [
        row
        for name, storage in storages.items()
        for row in measure_storage(name, storage, sizes, rounds)
    ]
    if options.tiny:
        shutil.rmtree(options.work)
        print(section(rows, origin))
        return
    figures = {"rows": rows, "provenance": origin}
    publish("storage", "Cost of a trial", figures, section(rows, origin))


if __name__ == "__main__":
    main()
