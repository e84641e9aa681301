"""What does a trial cost beside its forward passes? ``python benchmarks/trial_cost.py``.

Two things are measured on the digits model, each in a process of its own. A policy on the model:
answering the 64 cross-fitted proxy samples at four widths, against the plain forward passes of
the dense model over the same batches, pictures seen, in turn; and putting a random policy on. And
a trial of the digits study, from the end of one to the end of the next, on SQLite, beside the
forward passes in it. ``--before COMMIT`` measures another commit in turn with this one, and keeps
the figures; without it, those that were kept are shown.

`measure` is the part that needs no study, for other models and for GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _results import HERE, RESULTS, provenance, publish
from _trial_model import KEEPS, measure, put_on_shape

import effllava_optuna
from effllava_optuna.surgery import load, projector
from effllava_optuna.tasks import Digits, Split

if TYPE_CHECKING:
    from collections.abc import Sequence

_TURNS, _ROUNDS = 3, 15


class Passes:
    """Adds up the seconds that a model spends in forward passes, its projector's included."""

    def __init__(self, model: Any) -> None:
        self.seconds = 0.0
        self._depth = 0
        for module in (model, projector(model)):
            module.register_forward_pre_hook(lambda *_: self._begin())
            module.register_forward_hook(lambda *_: self._end())

    def _begin(self) -> None:
        if not self._depth:
            self._began = time.perf_counter()
        self._depth += 1

    def _end(self) -> None:
        self._depth -= 1
        if not self._depth:
            self.seconds += time.perf_counter() - self._began


def study(name: str, *changes: str) -> dict[str, Any]:
    """Run an epoch of a study; give the milliseconds of each trial, and of its forward passes."""
    import optuna

    from effllava_optuna.study.loop import begun, search
    from effllava_optuna.study.spec import read_spec

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place = Path(effllava_optuna.__file__).parents[1] / "studies" / f"{name}.toml"
    marks: list[tuple[float, float]] = []
    with (
        tempfile.TemporaryDirectory() as work,
        begun(read_spec(place, ("search.epochs=1", *changes)), f"sqlite:///{work}/a.db") as epochs,
    ):
        passes = Passes(epochs.bench.loaded.model)
        search(epochs, lambda *_: marks.append((time.perf_counter(), passes.seconds)))
    trial, forward = (1000 * np.diff(np.array(marks), axis=0)).T.tolist()
    return {"trial": trial, "forward": forward}


def figures(rounds: int) -> dict[str, Any]:
    """Measure both."""
    loaded = load("digits-vlm", device="cpu")
    found = measure(loaded, Digits().samples(Split.PROXY), rounds=rounds)
    return {
        "model": found,
        "put_on_7b": put_on_shape("7b", rounds),
        "study": study("quickstart"),
    }


def _child(root: Path) -> dict[str, Any]:
    """Let a process measure the package under ``root``."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--figures"],
        stdout=subprocess.PIPE, check=True, text=True, env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], stdout=subprocess.PIPE, check=True, text=True, cwd=HERE
    ).stdout.strip()


def compared(commit: str | None) -> dict[str, Any]:
    """Measure this commit, and in turn with it another one."""
    found: dict[str, list[dict[str, Any]]] = {"now": []}
    if commit is None:
        for _ in range(_TURNS):
            found["now"].append(_child(HERE.parent))
        return found
    with tempfile.TemporaryDirectory() as work:
        other = Path(work) / "before"
        _git("worktree", "add", "--detach", str(other), commit)
        try:
            found["before"] = []
            for _ in range(_TURNS):
                found["before"].append(_child(other))
                found["now"].append(_child(HERE.parent))
        finally:
            _git("worktree", "remove", "--force", str(other))
    return found


def _spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _ratios(runs: Sequence[dict[str, Any]], keep: float, against: str) -> list[float]:
    found = []
    for run in runs:
        model = run["model"]
        base = model[against] if against == "plain" else model[against][str(keep)]
        pairs = zip(model["trial"][str(keep)], base, strict=True)
        found += [trial / forward for trial, forward in pairs]
    return found


def _rows(kept: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Give the rows of the table: what, and its figure before and now."""

    def study(run: dict[str, Any], what: str) -> list[float]:
        trial, forward = run["study"]["trial"], run["study"]["forward"]
        if what == "rest":
            return [t - f for t, f in zip(trial, forward, strict=True)]
        return list(run["study"][what])

    columns = []
    for runs in kept.values():
        cells = [
            _spread([ms for run in runs for ms in study(run, what)], 1)
            for what in ("trial", "forward", "rest")
        ]
        cells.append(_spread([ms for run in runs for ms in run["model"]["put_on"]], 2))
        cells.append(_spread([ms for run in runs for ms in run["put_on_7b"]], 1))
        for against in ("plain", "forward"):
            cells += [_spread(_ratios(runs, keep, against), 2) for keep in KEEPS]
        for part in runs[0]["model"]["profile"]:
            share = np.median([run["model"]["profile"][part] for run in runs])
            cells.append(f"{share:.0%}")
        columns.append(cells)
    names = [
        "trial of the digits study, ms",
        "of it forward passes, ms",
        "of it all else, ms",
        "to put a policy on and off, ms",
        "the same, 7B shape without data (64 sites), ms",
        *(f"answering at keep {keep} / dense forward passes" for keep in KEEPS),
        *(f"answering at keep {keep} / its own forward passes" for keep in KEEPS),
        *(f"share of {part}" for part in kept["now"][0]["model"]["profile"]),
    ]
    return [[name, *cells] for name, *cells in zip(names, *columns, strict=True)]


def section(found: dict[str, Any]) -> str:
    """Write the section of RESULTS.md."""
    kept: dict[str, Any] = {name: found[name] for name in ("before", "now") if name in found}
    origin, model = found["provenance"], kept["now"][0]["model"]
    heads = [f"before ({found['commit']})" if name == "before" else name for name in kept]
    lines = [
        f"| | {' | '.join(heads)} |",
        f"|---|{'---|' * len(kept)}",
        *(f"| {' | '.join(row)} |" for row in _rows(kept)),
    ]
    return f"""Generated by `python benchmarks/trial_cost.py`; do not edit. Figures:
[results](results/trial_cost.json).

Medians (quartiles) of {_TURNS} processes. A trial of the digits study lasts from the end of one
to the end of the next, on SQLite. Answering is that of {model["samples"]} proxy samples in
{model["batches"]} batches, each by the fit that did not see it; forward passes are plain ones
over the same batches, pictures seen, in the same round. Shares are those of a profiled trial at
keep 0.5; the profiler makes Python slower than it is.

{chr(10).join(lines)}

{origin["cpu"]}, threads: 1; torch {origin["torch"]}, transformers {origin["transformers"]};
{origin["date"]}.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few trials; writes nothing")
    parser.add_argument("--before", metavar="COMMIT", help="measure another commit, too")
    parser.add_argument("--figures", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.figures:
        print(json.dumps(figures(_ROUNDS)))
        return
    if options.tiny:
        print("About 10 s.")
        loaded = load("digits-vlm", device="cpu")
        found = measure(loaded, Digits(proxy=8).samples(Split.PROXY), rounds=1)
        run = {
            "model": found,
            "put_on_7b": put_on_shape("tiny", 2),
            "study": study("smoke", "search.generations=1"),
        }
        for name, now in _rows({"now": [run]}):
            print(f"{name}: {now}")
        return
    print(f"about {_TURNS * (2 if options.before else 1)} minutes")
    place = RESULTS / "trial_cost.json"
    known = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    kept = {name: known[name] for name in ("before", "commit") if name in known}
    found = kept | compared(options.before) | {"provenance": provenance()}
    if options.before:
        found["commit"] = _git("rev-parse", "--short", options.before)
    publish("trial_cost", "Forward passes of a trial, and all else", found, section(found))


if __name__ == "__main__":
    main()
