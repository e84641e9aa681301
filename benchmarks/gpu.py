"""Measure all figures of a GPU in one run: ``python benchmarks/gpu.py``.

LLaVA-1.5-7B with random weights in bfloat16, created on the GPU: cost of an evaluation, error of
the latency table, speed-ups of prefill and decoding. Needs torch, transformers (5.18 or later) and
pillow, and a GPU with 40 GB of memory; nothing is downloaded. On an H200 the first two parts took
95 seconds with `--seconds 25`. Run it from a checkout; the package need not be installed.

``--shape 13b`` measures the larger model; ``--shape tiny --device cpu --tiny`` checks that the
script runs. Results are written part by part: finished parts stay if a later one fails.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import latency_model
import numpy as np
import speedup
import torch
from _means import markdown
from _pages import put_page
from _results import RESULTS, origin_line, provenance, write_figures
from _sentences import paragraph
from _shapes import questions, shaped
from _trial_model import WIDTH_RATIOS, Setup, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from effllava_optuna.surgery import LoadedModel

    Measure = Callable[[], dict[str, Any]]

TITLE = "The shape of LLaVA-1.5-{} on a GPU"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the figures.

    Attributes:
        file: Name of the file of results, without the shape.
        summary: Returns its main figures.
        tables: Formats its tables, under what they need as introduction.
    """

    file: str
    summary: Callable[[Mapping[str, Any]], str]
    tables: Callable[[Mapping[str, Any]], str]


def measures_of(loaded: LoadedModel, options: argparse.Namespace) -> list[Measure]:
    """Return what measures the figures of each of the `PARTS`."""
    shape, tiny = options.shape, options.tiny
    samples = questions(shape, 8 if tiny else 64)
    case = latency_model.Case(
        loaded=loaded,
        samples=samples[:8],
        workload=latency_model.precise_workload(
            options.batch, 16, seconds=0.0 if tiny else options.seconds
        ),
        step=options.multiple_of,
        checks=4 if tiny else 20,
    )
    table = cache(lambda: latency_model.timed_table(case))  # of two parts

    def measure_cost() -> dict[str, Any]:
        rounds = 2 if tiny else 5
        model = measure(loaded, samples, rounds, Setup(compensation="none"))
        return {"model": model, "rounds": rounds}

    def measure_table() -> dict[str, Any]:
        name = f"{shape} shape, {options.batch} prompts, 16 new tokens"
        errors = latency_model.summary(loaded.structure, table())
        return {"checks": case.checks, "tables": {name: [errors]}}

    def measure_speedup() -> dict[str, Any]:
        ratios = (0.5,) if tiny else speedup.WIDTH_RATIOS
        uniform = speedup.Uniform(case, ratios, exported=False, table=table())
        return {"cases": {f"{shape} shape, random weights": speedup.measure(uniform)}}

    return [measure_cost, measure_table, measure_speedup]


def cost_summary(model: Mapping[str, Any]) -> str:
    """Return the main figures of the cost of an evaluation."""
    trial = np.array(model["trial"]["0.5"])
    return paragraph(f"""
        {model["samples"]} samples take {np.median(trial):.0f} ms at width ratio 0.5,
        {np.median(trial / np.array(model["plain"])):.2f} of the time of the dense model.""")


def cost_tables(figures: Mapping[str, Any]) -> str:
    """Format the tables about the cost of an evaluation."""
    model = figures["model"]
    plain = np.array(model["plain"])
    lines = []
    for ratio in map(str, WIDTH_RATIOS):
        trial, forward = np.array(model["trial"][ratio]), np.array(model["forward"][ratio])
        medians = [np.median(trial), np.median(trial / plain), np.median(trial / forward)]
        lines.append([ratio, f"{medians[0]:.0f}", f"{medians[1]:.2f}", f"{medians[2]:.3f}"])
    head = ["width ratio", "evaluation, ms", "over plain dense", "over its own forward passes"]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in model["profile"].items())
    work = paragraph(f"""
        Evaluations: {model["samples"]} samples in {model["batches"]} batches of
        {model["tokens"]:,} tokens ({model["padding"]:,} of them padding),
        {model["parameters"]:,} parameters in {model["dtype"]}, compensation
        {model["compensation"]}, pictures encoded; medians of {figures["rounds"]} rounds in turn.
        Plain dense forward passes take {np.median(plain):.0f} ms; applying a random policy and
        undoing it takes {np.median(model["apply_ms"]):.1f} ms. The widths of this table are
        rounded to whole channels, not to multiples that suit matrix kernels.""")
    return f"""{work}

{markdown(head, lines)}

Shares of a profiled evaluation at width ratio 0.5: {shares}."""


def table_summary(figures: Mapping[str, Any]) -> str:
    """Return the error of the latency table."""
    ((run,),) = figures["tables"].values()
    return paragraph(f"""
        The latency table predicts {run["checks"]} random policies with a mean error of
        {run["error"]:.1%}.""")


PARTS = (
    Part("trial_cost", lambda figures: cost_summary(figures["model"]), cost_tables),
    Part("latency_model", table_summary, latency_model.error_table),
    Part("speedup", speedup.summary, speedup.tables),
)


def section(shape: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the page of a shape.

    Args:
        shape: Its name.
        found: By file of a part, the figures that have been measured.
    """
    parts = [(part, found[part.file]) for part in PARTS if part.file in found]
    files = ", ".join(f"[{name}](../results/{name}-{shape}.json)" for name in found)
    summary = " ".join(part.summary(figures) for part, figures in parts)
    missing = [part.file for part in PARTS if part.file not in found]
    note = f" Not measured: {', '.join(missing)}." if missing else ""
    tables = "\n\n".join(part.tables(figures) for part, figures in parts)
    origin = next(iter(found.values()))["provenance"]
    machine = origin.get("gpu", "CPU")
    commits = dict.fromkeys(figures["provenance"]["commit"] for figures in found.values())
    return f"""{paragraph(f"LLaVA-1.5-{shape.upper()}, random weights, {machine}: {summary}")}

Generated by `python benchmarks/gpu.py`; do not edit. Figures: {files}.{note}
Random weights have costs, but no accuracy.

{tables}

{origin_line(origin)} Commits: {", ".join(commits)}."""


def found_results(shape: str) -> dict[str, dict[str, Any]]:
    """Read the figures of the parts of a shape that have been measured."""
    files = {part.file: RESULTS / f"{part.file}-{shape}.json" for part in PARTS}
    return {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.is_file()
    }


def measure_parts(loaded: LoadedModel, options: argparse.Namespace, started: float) -> list[str]:
    """Measure all parts and write the results of each; return the names of those that failed."""
    origin, failed, shape = provenance(options.device), [], options.shape
    for part, measure_part in zip(PARTS, measures_of(loaded, options), strict=True):
        name = f"{part.file}-{shape}"
        try:
            figures = {"file": name, **measure_part(), "provenance": origin}
            text = section(shape, {part.file: figures})
        except Exception as error:  # the other parts are still useful
            failed.append(name)
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        finally:
            gc.collect()
        print(text)
        if not options.tiny:
            write_figures(name, figures)
            _put(shape)
        print(f"{name}: done after {_since(started)}", flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all parts, and write the results of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="7b", help="7b, 13b, small, tiny")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=1, help="prompts of the latency workload")
    parser.add_argument("--multiple-of", type=int, default=256, help="of MLP channels")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the latency table")
    parser.add_argument("--tiny", action="store_true", help="few rounds; publish nothing")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing; write the page of existing results"
    )
    options = parser.parse_args(arguments)
    if options.report:
        put_page(
            TITLE.format(options.shape.upper()),
            section(options.shape, found_results(options.shape)),
        )
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("No GPU is available. To check the script: --shape tiny --device cpu --tiny")
    if options.tiny:
        options.dtype, options.multiple_of = "float32", 8
    if options.device == "cpu":
        torch.set_num_threads(1)
    print("about 1 min" if options.tiny else "about 10 min (estimated)", flush=True)
    started = time.monotonic()
    loaded = shaped(options.shape, options.device, options.dtype)
    print(f"{loaded.model.num_parameters():,} parameters after {_since(started)}", flush=True)
    failed = measure_parts(loaded, options, started)
    if failed:
        sys.exit(f"Not measured: {', '.join(failed)}. The other results are in {RESULTS}.")


def _put(shape: str) -> None:
    """Write the page of a shape from all of its results."""
    put_page(TITLE.format(shape.upper()), section(shape, found_results(shape)))


def _since(started: float) -> str:
    return f"{time.monotonic() - started:.0f} s"


if __name__ == "__main__":
    main()
