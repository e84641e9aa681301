"""How long does a trial take beside its forward passes? ``python benchmarks/trial_cost.py``.

Two things are measured on the digits model, each in a process of its own. Policies on the model:
scoring the 64 cross-fitted proxy samples at four width ratios, in turn with the plain forward
passes of the dense model over the same batches, pictures encoded; and applying a random policy.
And a trial of the digits study, from the end of one to the end of the next, on SQLite, beside its
forward passes. ``--before COMMIT`` measures another commit in turn with this one, and stores its
figures; without the option, the stored ones are shown.

`_trial_model.measure` is the part that needs no study, for other models and for GPUs.
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
from _means import markdown
from _pages import publish
from _results import HERE, RESULTS, provenance
from _sentences import paragraph
from _trial_model import WIDTH_RATIOS, measure, time_apply_on_shape

import effllava_optuna
from effllava_optuna.surgery import load, projector
from effllava_optuna.tasks import Digits, Split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PROCESSES, _ROUNDS = 3, 15


class ForwardTime:
    """Adds up the seconds that a model spends in forward passes, including its projector.

    Args:
        model: The model; hooks are registered on it.
    """

    def __init__(self, model: Any) -> None:
        self.seconds = 0.0
        self._depth = 0
        for module in (model, projector(model)):
            module.register_forward_pre_hook(lambda *_: self._enter())
            module.register_forward_hook(lambda *_: self._leave())

    def _enter(self) -> None:
        if not self._depth:
            self._started = time.perf_counter()
        self._depth += 1

    def _leave(self) -> None:
        self._depth -= 1
        if not self._depth:
            self.seconds += time.perf_counter() - self._started


def measure_study(name: str, *changes: str) -> dict[str, Any]:
    """Run an epoch of a study; return milliseconds of each trial, and of its forward passes."""
    import optuna

    from effllava_optuna.config.loading import load_config
    from effllava_optuna.search.runner import Callbacks, begin, search

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = Path(effllava_optuna.__file__).parents[1] / "studies" / f"{name}.toml"
    config = load_config(file, ("search.epochs=1", *changes))
    ends: list[tuple[float, float]] = []
    with (
        tempfile.TemporaryDirectory() as work,
        begin(config, f"sqlite:///{work}/a.db") as session,
    ):
        forward_time = ForwardTime(session.evaluator.loaded.model)

        def record_end(*_: object) -> None:
            ends.append((time.perf_counter(), forward_time.seconds))

        search(session, Callbacks(on_trial=record_end))
    trial_ms, forward_ms = (1000 * np.diff(np.array(ends), axis=0)).T.tolist()
    return {"trial": trial_ms, "forward": forward_ms}


def measure_all(rounds: int) -> dict[str, Any]:
    """Measure the model and the study in this process."""
    loaded = load("digits-vlm", device="cpu")
    return {
        "model": measure(loaded, Digits().samples(Split.PROXY), rounds),
        "apply_7b_ms": time_apply_on_shape("7b", rounds),
        "study": measure_study("quickstart"),
    }


def _measure_in_process(root: Path) -> dict[str, Any]:
    """Measure the package under ``root`` in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--figures"],
        stdout=subprocess.PIPE, check=True, text=True, env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    figures: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return figures


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], stdout=subprocess.PIPE, check=True, text=True, cwd=HERE
    ).stdout.strip()


def compare(commit: str | None) -> dict[str, Any]:
    """Measure this commit, and in turn with it another one if there is one."""
    runs: dict[str, list[dict[str, Any]]] = {"now": []}
    if commit is None:
        for _ in range(_PROCESSES):
            runs["now"].append(_measure_in_process(HERE.parent))
        return runs
    runs["before"] = []
    with tempfile.TemporaryDirectory() as work:
        other = Path(work) / "before"
        _git("worktree", "add", "--detach", str(other), commit)
        try:
            for _ in range(_PROCESSES):
                runs["before"].append(_measure_in_process(other))
                runs["now"].append(_measure_in_process(HERE.parent))
        finally:
            _git("worktree", "remove", "--force", str(other))
    return runs


def _quartiles(values: Sequence[float], digits: int) -> str:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _ratios(runs: Sequence[Mapping[str, Any]], ratio: float, to: str) -> list[float]:
    """Return times of scoring at a width ratio over dense or own forward passes."""
    ratios = []
    for run in runs:
        model = run["model"]
        forward = model[to] if to == "plain" else model[to][str(ratio)]
        pairs = zip(model["trial"][str(ratio)], forward, strict=True)
        ratios += [trial_ms / forward_ms for trial_ms, forward_ms in pairs]
    return ratios


def _cells(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the column of one commit, by the name of the row."""
    studies = [run["study"] for run in runs]
    trial = [ms for study in studies for ms in study["trial"]]
    forward = [ms for study in studies for ms in study["forward"]]
    other = [ms - forward_ms for ms, forward_ms in zip(trial, forward, strict=True)]
    apply_ms = [ms for run in runs for ms in run["model"]["apply_ms"]]
    apply_7b_ms = [ms for run in runs for ms in run["apply_7b_ms"]]
    cells = {
        "trial of the digits study, ms": _quartiles(trial, 1),
        "forward passes in it, ms": _quartiles(forward, 1),
        "all else in it, ms": _quartiles(other, 1),
        "to apply a policy and undo it, ms": _quartiles(apply_ms, 2),
        "the same, 7B shape without data (64 components), ms": _quartiles(apply_7b_ms, 1),
    }
    for to, name in (("plain", "dense forward passes"), ("forward", "its own forward passes")):
        for ratio in WIDTH_RATIOS:
            cell = _quartiles(_ratios(runs, ratio, to), 2)
            cells[f"scoring at width ratio {ratio} / {name}"] = cell
    for part in runs[0]["model"]["profile"]:
        share = np.median([run["model"]["profile"][part] for run in runs])
        cells[f"share of {part}"] = f"{share:.0%}"
    return cells


def summary(cells: Mapping[str, str]) -> str:
    """Return the main figures, from the column of the newest commit."""
    return paragraph(f"""
        A trial of the digits study takes {cells["trial of the digits study, ms"]} ms, of which
        forward passes are {cells["forward passes in it, ms"]} and all else
        {cells["all else in it, ms"]}. Scoring a policy of width ratio 0.5 takes
        {cells["scoring at width ratio 0.5 / dense forward passes"]} of the time of dense forward
        passes. Medians with quartiles.""")


def section(figures: Mapping[str, Any]) -> str:
    """Format the page of the benchmark."""
    runs = {name: figures[name] for name in ("before", "now") if name in figures}
    origin, model = figures["provenance"], runs["now"][0]["model"]
    heads = [f"before ({figures['commit']})" if name == "before" else name for name in runs]
    columns = [_cells(of_commit) for of_commit in runs.values()]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return f"""{summary(columns[-1])}

Generated by `python benchmarks/trial_cost.py`; do not edit. Figures:
[results](../results/trial_cost.json).

Medians (quartiles) of {_PROCESSES} processes. A trial of the digits study lasts from the end of
one to the end of the next, on SQLite. Scored are {model["samples"]} proxy samples in
{model["batches"]} batches, each by the fit that has not seen it; forward passes are plain ones
over the same batches, pictures encoded, in the same round. Shares are those of a profiled trial at
width ratio 0.5; the profiler slows Python down.

{markdown(["quantity", *heads], rows)}

{origin["cpu"]}, threads: 1; torch {origin["torch"]}, transformers {origin["transformers"]};
{origin["date"]}.
"""


def _measure_tiny() -> dict[str, Any]:
    loaded = load("digits-vlm", device="cpu")
    return {
        "model": measure(loaded, Digits(proxy=8).samples(Split.PROXY), 1),
        "apply_7b_ms": time_apply_on_shape("tiny", 2),
        "study": measure_study("smoke", "search.generations=1"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few trials; publish nothing")
    parser.add_argument("--before", metavar="COMMIT", help="measure another commit, too")
    parser.add_argument("--figures", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.figures:
        print(json.dumps(measure_all(_ROUNDS)))
        return
    if options.tiny:
        print("About 10 s.")
        for name, cell in _cells([_measure_tiny()]).items():
            print(f"{name}: {cell}")
        return
    print(f"about {_PROCESSES * (2 if options.before else 1)} minutes")
    file = RESULTS / "trial_cost.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    before = {name: stored[name] for name in ("before", "commit") if name in stored}
    figures = before | compare(options.before) | {"provenance": provenance()}
    if options.before:
        figures["commit"] = _git("rev-parse", "--short", options.before)
    publish("trial_cost", "Forward passes of a trial, and all else", figures, section(figures))


if __name__ == "__main__":
    main()
