"""Does a whole study run on a model of 7 or 13 billion parameters? ``python benchmarks/scale.py``.

LLaVA-1.5-7B (``--shape 13b``: 13B) with random weights in bfloat16 on a GPU, through every stage
of a study: calibration, two epochs of trials, the projector's training between them, and the
slice and export of a policy. Seconds and peak memory of each stage are written down; how long
1,000 policies would take is told from the trials. Questions are about noise: no accuracy means
anything. Where the weights are spread over several devices, use ``--device device-map`` with a
checkpoint on disk, as `effllava_optuna.load` does; this script makes them on one.

``--shape tiny --device cpu --tiny`` shows on a CPU that it runs.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _results import provenance, publish, told
from _shapes import Noise, shaped

from effllava_optuna import Policy, export, sliced
from effllava_optuna.objectives import parameters, peak_memory_mb
from effllava_optuna.study import StudySpec, artifacts, storage
from effllava_optuna.study.evolution import Epochs
from effllava_optuna.study.loop import search
from effllava_optuna.study.workbench import Workbench
from effllava_optuna.surgery import running
from effllava_optuna.tasks import Split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.surgery import Loaded

_NARROWINGS = 20
_MEGA = 1e6


class Stages:
    """Seconds and peak memory by stage.

    Args:
        device: Where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.found: dict[str, dict[str, float]] = {}

    def run(self, name: str, do: Callable[[], Any]) -> Any:
        """Run a stage."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        started = time.perf_counter()
        given = do()
        if cuda:
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - started
        self.found[name] = {"seconds": seconds, "peak_mb": peak_memory_mb(self.device)}
        print(f"{name}: {seconds:.1f} s, peak {self.found[name]['peak_mb']:,.0f} MB", flush=True)
        return given


def spec_of(options: argparse.Namespace) -> StudySpec:
    """Give the study: two epochs of one generation."""
    return StudySpec.of(
        {
            "study": {"name": "scale"},
            "model": {"path": options.shape, "threads": 1 if options.tiny else "auto"},
            "task": {"name": "digits", "proxy": 8 if options.tiny else 64},
            "pruning": {
                "refit": options.refit, "order": "magnitude" if options.tiny else "taylor",
                "shares": [*options.shares], "multiple_of": 8 if options.tiny else 256,
                "table_gb": options.table_gb,
            },
            "latency": {
                "batch": 2 if options.tiny else 8, "seconds": 0.0 if options.tiny else 60.0,
                "checks": 4 if options.tiny else 20,
            },
            "search": {
                "epochs": 2, "generations": 1, "population": 4 if options.tiny else 24,
                "kept_share": 0.7,
            },
            "projector": {"elites": 1, "parts": 2, "steps": 2, "every": 1},
        }
    )  # fmt: skip


def measure(loaded: Loaded, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run all stages; give what each took."""
    spec, stages = spec_of(options), Stages(loaded.device)
    sizes = {Split.PROXY: spec.task.proxy, Split.VALIDATION: 8, Split.TEST: 8}
    url = f"sqlite:///{work / 'scale.db'}"
    dense_mb = sum(weight.nbytes for weight in loaded.model.parameters()) / _MEGA
    with Workbench(spec, loaded, Noise(options.shape, sizes)) as bench:
        study = storage.create_study(storage.open_storage(url, create=True), spec)
        vault = artifacts.Vault(artifacts.store_for(url, spec))
        told_at: list[tuple[str, float]] = []
        epochs = Epochs(study, bench, vault, lambda what, _: told_at.append((what, time.time())))
        stages.run("pictures", lambda: bench.crossed)
        stages.run("calibration", epochs.open)
        calibrating = [*told_at, ("", time.time())]
        study.sampler = epochs.sampler
        narrow = [_narrowing_ms(epochs, seed) for seed in range(_NARROWINGS)]
        stages.run("search and projector", lambda: search(epochs))
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.duration]
        seconds = [trial.duration.total_seconds() for trial in trials if trial.duration]
        policy = Policy.of(bench.anatomy, trials[-1].user_attrs["keep"])
        small = stages.run("slice", lambda: sliced(bench.loaded, policy, bench.bundle.order))
        if options.export:
            stages.run("export", lambda: export(small, work / "small.pruned"))
        update = epochs.ledger.epochs()[1].user_attrs
        table_mb = bench.bundle.dense.memory_mb
        return {
            "parameters": parameters(bench.loaded),
            "sites": len(bench.anatomy.sites),
            "dense_mb": dense_mb,
            "table_mb": table_mb,
            "refit": options.refit,
            "stages": stages.found,
            "calibration": _spans(calibrating),
            "latency_error": bench.bundle.latency.error,
            "narrowing_ms": float(np.median(narrow)),
            "trial_s": float(np.median(seconds)),
            "trials": len(trials),
            "update_s": update["seconds"],
            "kept_share": policy.kept_share(bench.anatomy),
            "left": parameters(small),
        }


def _spans(told_at: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Give the seconds of what was told to be under way, one after the other."""
    spans: dict[str, float] = {}
    for (what, start), (_, end) in itertools.pairwise(told_at):
        spans[what] = spans.get(what, 0.0) + end - start
    return spans


def _narrowing_ms(epochs: Epochs, seed: int) -> float:
    """Time how long it takes to put a random policy on."""
    bench, rng = epochs.bench, np.random.default_rng(seed)
    widths = bench.bundle.widths
    keep = [int(rng.choice(widths[site.id])) for site in bench.anatomy.sites]
    policy, basis = Policy.of(bench.anatomy, keep), bench.basis()
    started = time.perf_counter()
    with running(bench.loaded, basis, policy):
        return (time.perf_counter() - started) * 1e3


def section(found: Mapping[str, Any]) -> str:
    """Write the section of RESULTS.md."""
    one = found["study"]
    held = one["dense_mb"] + one["table_mb"]
    rows = [
        f"| {name} | {stage['seconds']:.1f} | {stage['peak_mb']:,.0f} | "
        f"{stage['peak_mb'] / held:.2f} |"
        for name, stage in one["stages"].items()
    ]
    spans = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in one["calibration"].items())
    return f"""Generated by `python benchmarks/scale.py`; do not edit. Figures:
[results](results/{found["file"]}.json).

A study of {found["shape"]} shape, random weights: {one["parameters"]:,} parameters, refit
{one["refit"]}. Dense weights {one["dense_mb"]:,.0f} MB, refit tables {one["table_mb"]:,.0f} MB.

| stage | seconds | peak, MB | over weights and tables |
|---|---|---|---|
{chr(10).join(rows)}

Of it: {spans or "nothing told"}. Putting a policy on: {one["narrowing_ms"]:.1f} ms; a trial:
{one["trial_s"]:.2f} s (median of {one["trials"]}), so that 1,000 take
{one["trial_s"] * 1000 / 60:.1f} minutes; the latency table was off by {one["latency_error"]:.1%}.
The last policy keeps {one["kept_share"]:.3f} of the decoder: {one["left"]:,} parameters.

{told(found["provenance"])}"""


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="7b", help="7b, 13b, small, tiny")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--refit", default="least-squares", choices=("none", "least-squares"))
    parser.add_argument(
        "--shares", type=float, nargs="+", default=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    )
    parser.add_argument("--table-gb", type=float, default=75.0)
    parser.add_argument("--export", action="store_true", help="export the slice, too")
    parser.add_argument("--tiny", action="store_true", help="seconds; writes nothing")
    options = parser.parse_args(words)
    if options.tiny:
        options.dtype, options.shares = "float32", (0.5, 1.0)
    print("about 20 s" if options.tiny else "about 10 min on an H200 (not measured)", flush=True)
    loaded = shaped(options.shape, options.device, options.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        study = measure(loaded, options, Path(scratch))
    name = f"scale-{options.shape}" + ("" if options.refit == "least-squares" else "-none")
    found = {
        "file": name, "shape": options.shape, "study": study,
        "provenance": provenance(options.device),
    }  # fmt: skip
    if options.tiny:
        print(section(found))
        return
    publish(name, f"A study of {options.shape}, refit {options.refit}", found, section(found))


if __name__ == "__main__":
    main()
