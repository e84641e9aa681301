"""How fast is a pruned model, and how fast could it be? ``python benchmarks/speedup.py``.

Uniform policies, predicted by the latency table and measured whole, beside the ideal speed-up: for
prefill, the floating-point operations of the dense model over those of the pruned one; for
decoding, the same ratio of the bytes of weights and cache that a token reads. On a CPU: the
embedded model and a larger decoder with random weights, each exported, read back by plain
transformers from its directory, and timed in turn with the dense checkpoint. With ``--shape 7b
--device cuda``: LLaVA-1.5-7B with random weights, sliced, decoding captured as a CUDA graph; and
the largest keep ratio of the decoder with a measured speed-up of 1.8.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _fields import KEEP_RATIO, WIDTH_RATIO
from _means import markdown
from _pages import publish
from _results import origin_line, provenance
from _sentences import joined, paragraph, value_range
from _shapes import questions, shaped
from _speedups import (
    GOAL,
    ideal_speedups,
    interpolated_ms,
    largest_keep_ratios,
    measured_speedups,
    policy_of,
    reloaded,
)
from latency_model import Case, precise_workload, timed_table

from effllava_optuna import LoadedModel, Policy, load, narrowed, rank_units, sliced
from effllava_optuna.objectives import LatencyTable, Stopwatch, parameters
from effllava_optuna.tasks import Digits, Split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


WIDTH_RATIOS = (0.8, 0.7, 0.54, 0.5, 0.4)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Uniform policies of a model.

    Attributes:
        case: Model, workload, step of MLP widths and number of random policies.
        width_ratios: Width ratios of the policies.
        exported: Whether exports that plain transformers has read are measured, instead of sliced
            models.
        table: Predicts them; None: it is timed first, and in the end also how much can be kept at
            a measured speed-up of 1.8.
    """

    case: Case
    width_ratios: Sequence[float]
    exported: bool
    table: LatencyTable | None = None


def measure(uniform: Uniform) -> dict[str, Any]:
    """Predict, measure and bound the speed-ups of uniform policies."""
    case, loaded = uniform.case, uniform.case.loaded
    structure = loaded.structure
    ranking, stopwatch = rank_units(loaded), Stopwatch(loaded, case.samples, case.workload)
    policies = {ratio: policy_of(structure, ratio, case.step) for ratio in uniform.width_ratios}
    table = uniform.table or timed_table(case)
    ideal = ideal_speedups(loaded, policies, ranking, stopwatch)
    with tempfile.TemporaryDirectory() as scratch:

        def network(ratio: float) -> LoadedModel:
            small = sliced(loaded, policies[ratio], ranking)
            return reloaded(small, Path(scratch) / f"{ratio}") if uniform.exported else small

        measured = measured_speedups(
            stopwatch, loaded, ((ratio, partial(network, ratio)) for ratio in policies)
        )
    dense_ms = table.phases(Policy.dense(structure))
    rows = []
    for ratio, policy in policies.items():
        predicted_ms = interpolated_ms(table, policy)
        with narrowed(loaded, policy, ranking) as network_of_policy:
            size = parameters(network_of_policy)
        rows.append(
            {
                WIDTH_RATIO: ratio,
                KEEP_RATIO: policy.keep_ratio,
                "parameters": size,
                "predicted": {phase: dense_ms[phase] / ms for phase, ms in predicted_ms.items()},
                "measured": measured[ratio],
                "ideal": ideal[ratio],
            }
        )
    figures = {
        "rows": rows,
        "origin": stopwatch.origin | {"parameters": parameters(loaded)},
        "error": table.error,
        "launched": sorted(stopwatch.launched),
        "exported": uniform.exported,
    }
    if uniform.exported or uniform.table is not None:
        return figures
    return figures | {"goal": largest_keep_ratios(loaded, ranking, stopwatch, case.step)}


def summary(figures: Mapping[str, Any]) -> str:
    """Return the main figures: the share of the ideal speed-up that is measured."""
    shares = []
    for name, case in figures["cases"].items():
        of_phases = [
            f"{value_range(row['measured'][phase] / row['ideal'][phase] for row in case['rows'])} "
            f"({phase})"
            for phase in case["rows"][0]["measured"]
        ]
        shares.append(f"{name} {joined(of_phases, ',')}")
    ratios = [row[WIDTH_RATIO] for case in figures["cases"].values() for row in case["rows"]]
    return paragraph(f"""
        The measured speed-up of policies with one width ratio ({min(ratios)} to {max(ratios)}), as
        a share of the ideal one: {joined(shares)}.""")


def _case_section(name: str, figures: Mapping[str, Any]) -> str:
    """Format the table of one model."""
    phases = list(figures["rows"][0]["measured"])
    lines = []
    for row in figures["rows"]:
        cells = [f"{row[WIDTH_RATIO]:.2f}", f"{row[KEEP_RATIO]:.3f}"]
        for phase in phases:
            predicted, measured, ideal = (
                row[kind][phase] for kind in ("predicted", "measured", "ideal")
            )
            cells += [
                f"{predicted:.2f}", f"**{measured:.2f}**", f"{ideal:.2f}",
                f"{measured / ideal:.2f}",
            ]  # fmt: skip
        lines.append(cells)
    columns = ("predicted", "measured", "ideal", "of ideal")
    head = ["width ratio", "keep ratio of the decoder"]
    head += [f"{phase}: {column}" for phase in phases for column in columns]
    goal = ""
    if "goal" in figures:
        largest = ", ".join(
            f"{phase} {'none' if ratio is None else format(ratio, '.3f')}"
            for phase, ratio in figures["goal"].items()
        )
        goal = f"\n\nLargest keep ratio of the decoder with a speed-up of {GOAL}: {largest}."
    form = "exported, read by plain transformers" if figures["exported"] else "sliced"
    origin = figures["origin"]
    return (
        f"{name} ({origin['parameters']:,} parameters, {origin['dtype']}, batch "
        f"{origin['batch']}, prompts of {origin['prompt_tokens']} tokens; {form}):\n\n"
        f"{markdown(head, lines)}{goal}"
    )


def tables(figures: Mapping[str, Any]) -> str:
    """Format the tables of all models, under what they are."""
    parts = [_case_section(name, of_case) for name, of_case in figures["cases"].items()]
    return f"""Speed-ups of uniform policies. Predicted: by the latency table; measured: the whole
model, timed in turn with the dense one; ideal: operations (prefill) or bytes read (decoding) of
the dense model over those of the pruned one, as if nothing else took time.

{(chr(10) * 2).join(parts)}"""


def section(figures: Mapping[str, Any]) -> str:
    """Format the page of the benchmark."""
    return f"""{summary(figures)}

Generated by `python benchmarks/speedup.py`; do not edit. Figures:
[results](../results/{figures["file"]}.json).

{tables(figures)}

{origin_line(figures["provenance"])}"""


def cases_of(options: argparse.Namespace) -> dict[str, Uniform]:
    """Return the models with their policies, by name."""
    seconds = 0.0 if options.tiny else options.seconds
    ratios, checks = ((0.5,), 4) if options.tiny else (WIDTH_RATIOS, 20)
    if options.shape:
        case = Case(
            loaded=shaped(options.shape, options.device, options.dtype),
            samples=questions(options.shape, 8),
            workload=precise_workload(options.batch, 16, seconds=seconds),
            step=options.multiple_of,
            checks=checks,
        )
        return {f"{options.shape} shape, random weights": Uniform(case, ratios, exported=False)}
    digits = Case(
        loaded=load("digits-vlm", device="cpu"),
        samples=Digits().samples(Split.PROXY),
        workload=precise_workload(4 if options.tiny else 64, 8, precision=0.01, seconds=seconds),
        checks=checks,
    )
    cases = {"digits-vlm": Uniform(digits, ratios, exported=True)}
    if not options.tiny:
        larger = Case(
            loaded=shaped("small"),
            samples=questions("small", 2),
            workload=precise_workload(2, 8, precision=0.01, seconds=seconds),
            step=8,
            checks=checks,
        )
        cases["a decoder with random weights"] = Uniform(larger, ratios, exported=True)
    return cases


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", help="7b, 13b, small, tiny; without it, models for a CPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--multiple-of", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--tiny", action="store_true", help="run for seconds; publish nothing")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    print("about 1 min" if options.tiny else "about 8 min")
    name = "speedup" + (f"-{options.shape}" if options.shape else "")
    figures = {
        "file": name,
        "cases": {case: measure(uniform) for case, uniform in cases_of(options).items()},
        "provenance": provenance(options.device),
    }
    if options.tiny:
        print(section(figures))
        return
    title = "Speed-ups" + (f", {options.shape}" if options.shape else "")
    publish(name, title, figures, section(figures))


if __name__ == "__main__":
    main()
