"""Does a whole study run on a model of 7 or 13 billion parameters? ``python benchmarks/scale.py``.

LLaVA-1.5-7B (``--shape 13b``: 13B) with random weights in bfloat16 on a GPU, through every stage
of a study: calibration, two epochs of trials, the projector training between them, and slicing and
export of a policy. Seconds and peak memory of each stage are recorded; the time of 1,000 policies
follows from the trials. Questions are about noise: no accuracy means anything. This script creates
the weights on one device; to spread them over several, load a checkpoint with
``device="device-map"`` (`effllava_optuna.load`).

``--shape tiny --device cpu --tiny`` checks on a CPU that the script runs.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _fields import COMPENSATION, KEEP_RATIO
from _means import markdown
from _pages import publish
from _results import origin_line, provenance
from _sentences import paragraph
from _shapes import Noise, shaped

from effllava_optuna import Policy, export, sliced
from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.objectives import parameters, peak_memory_mb
from effllava_optuna.search.runner import search
from effllava_optuna.search.session import open_session
from effllava_optuna.storage.artifact_store import ArtifactStore, artifact_backend_of
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.studies import create_study
from effllava_optuna.study import StudyConfig
from effllava_optuna.surgery import policy_network
from effllava_optuna.tasks import Split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import LoadedModel

_POLICIES = 20
_MEGA = 1e6


@dataclass(frozen=True)
class Stages:
    """Seconds and peak memory by stage.

    Attributes:
        device: Device of the model.
        figures: Figures by name of the stage.
    """

    device: torch.device
    figures: dict[str, dict[str, float]] = field(default_factory=dict)

    def run(self, name: str, stage: Callable[[], Any]) -> Any:
        """Run a stage, and return its result."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        started = time.perf_counter()
        result = stage()
        if cuda:
            torch.cuda.synchronize(self.device)
        seconds, peak_mb = time.perf_counter() - started, peak_memory_mb(self.device)
        self.figures[name] = {"seconds": seconds, "peak_mb": peak_mb}
        print(f"{name}: {seconds:.1f} s, peak {peak_mb:,.0f} MB", flush=True)
        return result


def config_of(options: argparse.Namespace) -> StudyConfig:
    """Return the study file: two epochs of one generation."""
    tiny = options.tiny
    return StudyConfig.of(
        {
            "study": {"name": "scale"},
            "model": {"path": options.shape, "threads": 1 if tiny else "auto"},
            "task": {"name": "digits", "proxy": 8 if tiny else 64},
            "pruning": {
                "compensation": options.compensation,
                "importance": "magnitude" if tiny else "taylor",
                "width_ratios": [*options.width_ratios],
                "multiple_of": 8 if tiny else 256,
                "table_gb": options.table_gb,
            },
            "latency": {
                "batch": 2 if tiny else 8,
                "seconds": 0.0 if tiny else 60.0,
                "checks": 4 if tiny else 20,
            },
            "search": {
                "epochs": 2,
                "generations": 1,
                "population": 4 if tiny else 24,
                "keep_ratio": 0.7,
            },
            "projector": {"elites": 1, "parts": 2, "steps": 2, "every": 1},
        }
    )


def measure(loaded: LoadedModel, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run all stages; return the figures of each."""
    config, stages = config_of(options), Stages(loaded.device)
    task = Noise(
        options.shape,
        {
            Split.PROXY: config.task.sizes[Split.PROXY],
            Split.VALIDATION: 8,
            Split.TEST: 8,
        },
    )
    url = f"sqlite:///{work / 'scale.db'}"
    dense_mb = sum(weight.nbytes for weight in loaded.model.parameters()) / _MEGA
    stage_starts: list[tuple[str, float]] = []
    with ExitStack() as stack:
        inputs = stages.run(
            "pictures", lambda: stack.enter_context(study_inputs(config, loaded, task))
        )
        study = create_study(open_storage(url, create=True), inputs.config)
        artifact_store = ArtifactStore(artifact_backend_of(url, config))
        session = stages.run(
            "calibration",
            lambda: stack.enter_context(
                open_session(
                    study,
                    inputs,
                    artifact_store,
                    lambda name, _: stage_starts.append((name, time.time())),
                )
            ),
        )
        calibration = _seconds_by_stage([*stage_starts, ("", time.time())])
        export_to = work / "small.pruned" if options.export else None
        return {
            "dense_mb": dense_mb,
            "compensation": options.compensation,
            "calibration": calibration,
            **_run_stages(session, stages, export_to),
        }


def _run_stages(session: SearchSession, stages: Stages, export_to: Path | None) -> dict[str, Any]:
    """Search, slice the last policy and export it; return the figures."""
    evaluator, calibration = session.evaluator, session.evaluator.calibration
    apply_ms = [_apply_ms(session, seed) for seed in range(_POLICIES)]
    stages.run("search and projector", lambda: search(session))
    trials = [trial for trial in session.study.get_trials(deepcopy=False) if trial.duration]
    seconds = [trial.duration.total_seconds() for trial in trials if trial.duration]
    policy = Policy.of(evaluator.structure, trials[-1].user_attrs["widths"])
    small = stages.run("slice", lambda: sliced(evaluator.loaded, policy, calibration.ranking))
    if export_to is not None:
        stages.run("export", lambda: export(small, export_to))
    update = session.epochs.control_study.published_epochs()[1].user_attrs
    return {
        "parameters": parameters(evaluator.loaded),
        "components": len(evaluator.structure.components),
        "table_mb": calibration.dense.memory_mb,
        "stages": stages.figures,
        "latency_error": calibration.latency.error,
        "apply_ms": float(np.median(apply_ms)),
        "trial_s": float(np.median(seconds)),
        "trials": len(trials),
        "update_s": update["seconds"],
        KEEP_RATIO: policy.keep_ratio,
        "left": parameters(small),
    }


def _seconds_by_stage(starts: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return the seconds of the stages of calibration; the last start is the end."""
    seconds: dict[str, float] = {}
    for (name, start), (_, end) in itertools.pairwise(starts):
        seconds[name] = seconds.get(name, 0.0) + end - start
    return seconds


def _apply_ms(session: SearchSession, seed: int) -> float:
    """Time how long it takes to apply a random policy."""
    evaluator, rng = session.evaluator, np.random.default_rng(seed)
    widths = evaluator.calibration.widths
    kept = [int(rng.choice(widths[component.id])) for component in evaluator.structure.components]
    policy = Policy.of(evaluator.structure, kept)
    weight_state = session.epochs.epoch(0).weight_state
    started = time.perf_counter()
    with policy_network(evaluator.loaded, weight_state, policy):
        return (time.perf_counter() - started) * 1e3


def summary(study: Mapping[str, Any]) -> str:
    """Return the main figures."""
    return paragraph(f"""
        {study["parameters"]:,} parameters with random weights: a trial takes
        {study["trial_s"]:.2f} s (median of {study["trials"]}), calibration
        {study["stages"]["calibration"]["seconds"] / 60:.1f} minutes.""")


def section(figures: Mapping[str, Any]) -> str:
    """Format the page of the benchmark."""
    study = figures["study"]
    held_mb = study["dense_mb"] + study["table_mb"]
    lines = [
        [
            name,
            f"{stage['seconds']:.1f}",
            f"{stage['peak_mb']:,.0f}",
            f"{stage['peak_mb'] / held_mb:.2f}",
        ]
        for name, stage in study["stages"].items()
    ]
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in study["calibration"].items())
    return f"""{summary(study)}

Generated by `python benchmarks/scale.py`; do not edit. Figures:
[results](../results/{figures["file"]}.json).

A study of the {figures["shape"]} shape, random weights: {study["parameters"]:,} parameters,
compensation {study[COMPENSATION]}. Dense weights {study["dense_mb"]:,.0f} MB, compensation tables
{study["table_mb"]:,.0f} MB.

{markdown(["stage", "seconds", "peak, MB", "over weights and tables"], lines)}

Parts of the calibration: {parts or "not recorded"}. Applying a policy: {study["apply_ms"]:.1f} ms;
a trial: {study["trial_s"]:.2f} s (median of {study["trials"]}), so that 1,000 trials take
{study["trial_s"] * 1000 / 60:.1f} minutes; error of the latency table:
{study["latency_error"]:.1%}. The last policy keeps {study[KEEP_RATIO]:.3f} of the decoder:
{study["left"]:,} parameters.

{origin_line(figures["provenance"])}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="7b", help="7b, 13b, small, tiny")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--compensation", default="least-squares", choices=("none", "least-squares")
    )
    parser.add_argument(
        "--width-ratios", type=float, nargs="+", default=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    )
    parser.add_argument("--table-gb", type=float, default=75.0)
    parser.add_argument("--export", action="store_true", help="export the slice, too")
    parser.add_argument("--tiny", action="store_true", help="run for seconds; publish nothing")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.dtype, options.width_ratios = "float32", (0.5, 1.0)
    print("about 20 s" if options.tiny else "about 10 min on an H200 (estimated)", flush=True)
    loaded = shaped(options.shape, options.device, options.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        study = measure(loaded, options, Path(scratch))
    suffix = "" if options.compensation == "least-squares" else "-none"
    figures = {
        "file": f"scale-{options.shape}{suffix}",
        "shape": options.shape,
        "study": study,
        "provenance": provenance(options.device),
    }
    if options.tiny:
        print(section(figures))
        return
    title = f"A study of {options.shape}, compensation {options.compensation}"
    publish(str(figures["file"]), title, figures, section(figures))


if __name__ == "__main__":
    main()
