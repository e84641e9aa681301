"""Which targets of speed and memory are met? ``python benchmarks/targets.py``.

Reads the results of the other scripts, and measures nothing: a figure without results is reported
as not measured. A value is shown with its machine, which may differ from that of the target.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from _fields import WIDTH_RATIO
from _means import markdown
from _pages import put_page
from _results import RESULTS
from _sentences import paragraph

if TYPE_CHECKING:
    from collections.abc import Sequence

NOT_MEASURED = "not measured"
Reader = Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Target:
    """A figure, its target, and the files that have its value.

    Attributes:
        figure: What is measured.
        target: The target, as a clause.
        values: Names of files of results, each with a function that returns the value.
    """

    figure: str
    target: str
    values: tuple[tuple[str, Reader], ...]

    def row(self) -> list[str]:
        """Return the row of the table."""
        values = []
        for name, read in self.values:
            file = RESULTS / f"{name}.json"
            if file.is_file():
                figures = json.loads(file.read_text(encoding="utf-8"))
                origin = figures["provenance"]
                machine = origin.get("gpu") or f"CPU ({origin['cpu']})"
                values.append(f"[{machine}](../results/{name}.json): {read(figures)}")
        return [self.figure, self.target, "; ".join(values) or NOT_MEASURED]


def _models(figures: Any) -> list[Any]:
    """Return the figures of the model, of each process; on a GPU there is one."""
    return [run["model"] for run in figures["now"]] if "now" in figures else [figures["model"]]


def _evaluation_over_dense(figures: Any) -> str:
    ratios = [
        trial / plain
        for model in _models(figures)
        for trial, plain in zip(model["trial"]["0.5"], model["plain"], strict=True)
    ]
    return f"{np.median(ratios):.2f}"


def _outside_model_ms(figures: Any) -> str:
    other = [
        trial - forward
        for run in figures["now"]
        for trial, forward in zip(run["study"]["trial"], run["study"]["forward"], strict=True)
    ]
    return f"{np.median(other):.1f} ms a trial of the digits study"


def _outside_model_share(figures: Any) -> str:
    shares = [
        1 - forward / trial
        for model in _models(figures)
        for trial, forward in zip(model["trial"]["0.5"], model["forward"]["0.5"], strict=True)
    ]
    return f"{np.median(shares):.1%} of an evaluation, without storage"


def _dense_evaluation(figures: Any) -> str:
    return f"{np.median(figures['model']['trial']['1.0']) / 1e3:.2f} s"


def _apply(figures: Any) -> str:
    if "now" in figures:
        times = [ms for run in figures["now"] for ms in run["apply_7b_ms"]]
        return f"{np.median(times):.1f} ms (7B shape without data)"
    return f"{np.median(figures['model']['apply_ms']):.1f} ms"


def _share_of_ideal(figures: Any) -> str:
    cases = []
    for name, case in figures["cases"].items():
        rows = [row for row in case["rows"] if row[WIDTH_RATIO] in (0.8, 0.7, 0.54)]
        for phase in rows[0]["measured"]:
            shares = [f"{row['measured'][phase] / row['ideal'][phase]:.2f}" for row in rows]
            cases.append(f"{name}, {phase}: {', '.join(shares)}")
    return "; ".join(cases)


def _goal(figures: Any) -> str:
    (case,) = figures["cases"].values()
    return ", ".join(f"{phase} {ratio}" for phase, ratio in case["goal"].items())


def _memory(figures: Any) -> str:
    ratios = [
        f"{run['peak'] / (run['dense'] + run['table']):.2f} ({compensation})"
        for compensation, run in figures["runs"].items()
    ]
    return ", ".join(ratios)


def _calibration(figures: Any) -> str:
    study = figures["study"]
    minutes = study["stages"]["calibration"]["seconds"] / 60
    return f"{minutes:.1f} minutes ({study['compensation']})"


def _thousand_policies(figures: Any) -> str:
    return f"{figures['study']['trial_s'] * 1000 / 60:.1f} minutes"


def _table_error(figures: Any) -> str:
    return "; ".join(
        f"{name}: {', '.join(format(run['error'], '.1%') for run in runs)}"
        for name, runs in figures["tables"].items()
    )


TARGETS = (
    Target(
        "evaluation at width ratio 0.5 over dense evaluation, same samples", "at most 0.60",
        (("trial_cost-7b", _evaluation_over_dense), ("trial_cost", _evaluation_over_dense)),
    ),
    Target(
        "time of a trial outside model code",
        "at most 5 % on the 7B shape; 10 ms on the digits study",
        (("trial_cost-7b", _outside_model_share), ("trial_cost", _outside_model_ms)),
    ),
    Target(
        "64-sample evaluation, dense 7B shape, H200, bf16, cached vision features",
        "at most 1.2 s (floor about 0.7 s)", (("trial_cost-7b", _dense_evaluation),),
    ),
    Target(
        "1,000 policies, 7B shape, H200", "at most 20 minutes",
        (("scale-7b", _thousand_policies),),
    ),
    Target(
        "measured speed-up over ideal at width ratios 0.8, 0.7, 0.54, prefill and graphed decode, "
        "H200",
        "at least 0.90", (("speedup-7b", _share_of_ideal), ("speedup", _share_of_ideal)),
    ),
    Target(
        "largest keep ratio of the decoder with measured 1.8x, prefill and graphed decode, 7B "
        "shape, H200",
        "at least 0.50 (ideal about 0.54)", (("speedup-7b", _goal),),
    ),
    Target(
        "peak memory of a search over dense weights and the compensation tables",
        "at most 1.15", (("memory-4096", _memory), ("memory", _memory)),
    ),
    Target(
        "calibration of the 7B shape on H200 (statistics, rankings, compensation tables)",
        "at most 10 minutes", (("scale-7b", _calibration),),
    ),
    Target(
        "applying a policy, 7B shape", "at most 20 ms",
        (("trial_cost-7b", _apply), ("trial_cost", _apply)),
    ),
    Target(
        "error of the latency table, mean of at least 20 policies",
        "at most 3 % on a GPU, 8 % on two noisy cores",
        (("latency_model-7b", _table_error), ("latency_model", _table_error)),
    ),
)  # fmt: skip


def summary(rows: Sequence[Sequence[str]]) -> str:
    """Return how many targets have figures."""
    measured = sum(row[-1] != NOT_MEASURED for row in rows)
    on_gpu = sum(bool(re.search(r"\[(?!CPU)", row[-1])) for row in rows)
    return paragraph(f"""
        Of {len(rows)} targets of speed and memory, most of them of a 7B model on one H200,
        {measured} have figures, {on_gpu or "none"} of them from a GPU.""")


def section() -> str:
    """Format the page of the benchmark."""
    rows = [target.row() for target in TARGETS]
    table = markdown(["figure", "target", "measured"], rows)
    return f"""{summary(rows)}

Generated by `python benchmarks/targets.py` from the results of the other scripts;
do not edit. For the GPU: `python benchmarks/gpu.py`, `python benchmarks/scale.py` and
`python benchmarks/memory.py --hidden 4096 --layers 32 --device cuda --dtype bfloat16`. Values from
a CPU say nothing about a GPU.

{table}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table; with ``--print``, only print it."""
    text = section()
    print(text)
    if arguments is None or "--print" not in arguments:
        put_page("Targets", text)


if __name__ == "__main__":
    main()
