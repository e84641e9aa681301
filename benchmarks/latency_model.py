"""How large is the error of a sum of the latency table? ``python benchmarks/latency_model.py``.

Two tables of the embedded model (the prefill of 64 prompts; 16 prompts with 16 new tokens) and
one of a larger decoder with random weights, each with whole runs of 20 random policies in the same
rounds; every table is measured twice, to compare the two. With ``--shape 7b --device cuda`` on a
GPU: LLaVA-1.5-7B with random weights, prefill and decoding separately.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _means import markdown
from _pages import publish
from _results import origin_line, provenance
from _sentences import joined, paragraph, value_range
from _shapes import questions, shaped

from effllava_optuna import load, rank_units
from effllava_optuna.objectives import LatencyTable, Stopwatch, Workload, measure_table
from effllava_optuna.policy import Kind, Policy
from effllava_optuna.surgery import arranged
from effllava_optuna.tasks import Digits, Split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import ComponentId, ModelStructure
    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Sample

_WIDTH_RATIOS = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True, slots=True)
class Case:
    """What is timed.

    Attributes:
        loaded: The model.
        samples: Questions about pictures.
        workload: The workload.
        step: MLP widths are multiples of it.
        checks: Number of random policies that are run whole.
    """

    loaded: LoadedModel
    samples: Sequence[Sample]
    workload: Workload
    step: int = 1
    checks: int = 20


def precise_workload(
    batch: int, new_tokens: int, *, precision: float = 0.005, seconds: float
) -> Workload:
    """Return a workload that is timed three times, and then until it is precise.

    Args:
        batch: Number of prompts.
        new_tokens: Tokens generated for each prompt.
        precision: See `Workload`.
        seconds: See `Workload`.
    """
    return Workload(
        batch=batch,
        new_tokens=new_tokens,
        warmup=1,
        repeats=3,
        precision=precision,
        seconds=seconds,
    )


def widths_of(structure: ModelStructure, step: int = 1) -> dict[ComponentId, tuple[int, ...]]:
    """Return twelve widths of each component, or all; those of MLPs are multiples of ``step``."""
    widths = {}
    for component in structure.components:
        each = step if component.kind is Kind.MLP else 1
        counts = {
            max(component.floor, each, round(ratio * component.width / each) * each)
            for ratio in _WIDTH_RATIOS
        }
        narrower = {count for count in counts if count < component.width}
        widths[component.id] = tuple(sorted(narrower | {component.width}))
    return widths


def measure(case: Case, seed: int = 0) -> dict[str, Any]:
    """Measure a table; return its errors and the latency ratios by kind and width."""
    return summary(case.loaded.structure, timed_table(case, seed))


def timed_table(case: Case, seed: int = 0) -> LatencyTable:
    """Time all widths, and whole random policies."""
    loaded, ranking = case.loaded, rank_units(case.loaded)
    stopwatch = Stopwatch(loaded, case.samples, case.workload)
    widths = widths_of(loaded.structure, case.step)
    with arranged(loaded, ranking) as ready:
        return measure_table(stopwatch.on(ready), ranking, widths, checks=case.checks, seed=seed)


def summary(structure: ModelStructure, table: LatencyTable) -> dict[str, Any]:
    """Return the published figures of a table."""
    narrowest = Policy.of(
        structure, [min(table.friendly[component.id]) for component in structure.components]
    )
    kinds = dict.fromkeys(str(component.kind) for component in structure.components)
    return {
        "origin": dict(table.origin),
        "error": table.error,
        "worst": max(map(abs, table.errors)),
        "bias": float(np.mean(table.errors)),
        "checks": len(table.errors),
        "rounds": table.rounds,
        "spread": table.spread,
        "launched": list(table.launched),
        "dense_ms": dict(table.dense_ms),
        "vision_ms": table.vision_ms,
        "reach": table.dense_total_ms / table.predict(narrowest),
        "latency_ratios": {
            phase: {kind: _latency_ratios(structure, table, phase, kind) for kind in kinds}
            for phase in table.dense_ms
        },
    }


def _latency_ratios(
    structure: ModelStructure, table: LatencyTable, phase: str, kind: str
) -> dict[str, float]:
    """Return latencies as ratios to the dense one, by the width of all components of a kind."""
    saved_ms = [
        table.saved_ms[phase][component.id]
        for component in structure.components
        if component.kind == kind and component.tower == "language"
    ]
    return {
        str(width): 1 + sum(row[width] for row in saved_ms) / table.dense_ms[phase]
        for width in saved_ms[0]
    }


def error_summary(figures: Mapping[str, Any]) -> str:
    """Return the main figures."""
    errors = [
        f"{value_range((100 * run['error'] for run in runs), '.1f')} % ({name})"
        for name, runs in figures["tables"].items()
    ]
    return paragraph(f"""
        The latency table predicts the speed of {figures["checks"]} random policies with a mean
        error of {joined(errors)}.""")


def error_table(figures: Mapping[str, Any]) -> str:
    """Format the errors of tables, under what they are."""
    lines = []
    for name, runs in figures["tables"].items():
        for number, run in enumerate(runs, 1):
            launched = ", ".join(run["launched"])
            lines.append(
                [
                    f"{name}, launches timed in {launched}" if launched else name,
                    str(number),
                    f"{run['error']:.1%}",
                    f"{run['worst']:.1%}",
                    f"{run['bias']:+.1%}",
                    str(run["rounds"]),
                    "-" if run["spread"] is None else f"{run['spread']:.1%}",
                    " + ".join(f"{ms:.1f} ({phase})" for phase, ms in run["dense_ms"].items()),
                    f"{run['reach']:.2f}",
                ]
            )
    head = [
        "model and workload", "run", "error", "worst", "bias", "rounds", "spread", "dense, ms",
        "reach",
    ]  # fmt: skip
    return f"""Sums of the table against whole runs of {figures["checks"]} random policies, in
the same interleaved rounds, every run as a ratio to the dense runs beside it. Error: mean of the
absolute values; spread: half the 95 % interval of a typical timing; reach: speed of the narrowest
policy, as a multiple of that of the dense model.

{markdown(head, lines)}"""


def section(figures: Mapping[str, Any]) -> str:
    """Format the page of the benchmark."""
    return f"""{error_summary(figures)}

Generated by `python benchmarks/latency_model.py`; do not edit. Figures:
[results](../results/{figures["file"]}.json).

Each table was measured twice, on the same machine, which was shared with others. Target: 3 % on a
GPU, 8 % on two noisy cores.

{error_table(figures)}

{origin_line(figures["provenance"])}"""


def cases_of(options: argparse.Namespace) -> dict[str, Case]:
    """Return what is timed, by name."""
    seconds, checks = options.seconds, options.checks
    if options.shape:
        prompts = f"{options.batch} prompts, {options.new_tokens} new tokens"
        name = f"{options.shape} shape, {prompts}"
        return {
            name: Case(
                loaded=shaped(options.shape, options.device, options.dtype),
                samples=questions(options.shape, 8),
                workload=precise_workload(options.batch, options.new_tokens, seconds=seconds),
                step=options.multiple_of,
                checks=checks,
            )
        }
    digits, samples = load("digits-vlm", device="cpu"), Digits().samples(Split.PROXY)
    many, few = (4, 2) if options.tiny else (64, 16)

    def digits_case(batch: int, new_tokens: int) -> Case:
        workload = precise_workload(batch, new_tokens, precision=0.01, seconds=seconds)
        return Case(digits, samples, workload, checks=checks)

    cases = {
        f"digits-vlm, prefill of {many}": digits_case(many, 1),
        f"digits-vlm, {few} with 16 new tokens": digits_case(few, 16),
    }
    if not options.tiny:
        cases["27 M parameters, random weights, prefill of 2"] = Case(
            loaded=shaped("small"),
            samples=questions("small", 2),
            workload=precise_workload(2, 1, precision=0.01, seconds=seconds),
            step=8,
            checks=checks,
        )
    return cases


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", help="7b, 13b, small, tiny; without it, models for a CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--multiple-of", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--checks", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="run for seconds; publish nothing")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.seconds, options.checks = 0.0, 3
    if options.device == "cpu":
        torch.set_num_threads(1)
    cases = cases_of(options)
    repeats = 1 if options.tiny else 2
    print(f"about {len(cases) * repeats * (options.seconds + 10) / 60:.0f} min")
    tables = {
        name: [measure(case, seed) for seed in range(repeats)] for name, case in cases.items()
    }
    name = "latency_model" + (f"-{options.shape}" if options.shape else "")
    figures = {
        "file": name,
        "checks": options.checks,
        "tables": tables,
        "provenance": provenance(options.device),
    }
    if options.tiny:
        print(section(figures))
        return
    title = "Error of the latency table" + (f", {options.shape}" if options.shape else "")
    publish(name, title, figures, section(figures))


if __name__ == "__main__":
    main()
