"""Which targets of speed and memory are met? ``python benchmarks/targets.py``.

Reads the results of the other scripts, and measures nothing: a figure that nobody has measured is
called so. A value from another machine than the target names stands beside it with its machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from _results import RESULTS, put_section

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NOT = "not measured"


@dataclass(frozen=True, slots=True)
class Target:
    """A figure, what it should be, and where its value is.

    Attributes:
        figure: What.
        target: As a clause.
        values: Files, each with what to read from it.
    """

    figure: str
    target: str
    values: tuple[tuple[str, Callable[[Any], str]], ...]

    def row(self) -> str:
        """Write its line of the table."""
        told = []
        for name, read in self.values:
            place = RESULTS / f"{name}.json"
            if place.is_file():
                found = json.loads(place.read_text(encoding="utf-8"))
                origin = found["provenance"]
                where = origin.get("gpu") or f"CPU ({origin['cpu']})"
                told.append(f"[{where}](results/{name}.json): {read(found)}")
        return f"| {self.figure} | {self.target} | {'; '.join(told) or NOT} |"


def _over_dense(found: Any) -> str:
    ratios = [
        trial / plain
        for run in _runs(found)
        for trial, plain in zip(run["trial"]["0.5"], run["plain"], strict=True)
    ]
    return f"{np.median(ratios):.2f}"


def _runs(found: Any) -> list[Any]:
    """Give the model part of each process of the cost of a trial; on a GPU there is one."""
    return [run["model"] for run in found["now"]] if "now" in found else [found["model"]]


def _rest(found: Any) -> str:
    rest = [
        trial - forward
        for run in found["now"]
        for trial, forward in zip(run["study"]["trial"], run["study"]["forward"], strict=True)
    ]
    return f"{np.median(rest):.1f} ms a trial of the digits study"


def _share(found: Any) -> str:
    shares = [
        1 - forward / trial
        for run in _runs(found)
        for trial, forward in zip(run["trial"]["0.5"], run["forward"]["0.5"], strict=True)
    ]
    return f"{np.median(shares):.1%} of an evaluation, without storage"


def _plain(found: Any) -> str:
    return f"{np.median(found['model']['trial']['1.0']) / 1e3:.2f} s"


def _put_on(found: Any) -> str:
    if "now" in found:
        times = [ms for run in found["now"] for ms in run["put_on_7b"]]
        return f"{np.median(times):.1f} ms (7B shape without data)"
    return f"{np.median(found['model']['put_on']):.1f} ms"


def _of_ideal(found: Any) -> str:
    told = []
    for name, one in found["cases"].items():
        rows = [row for row in one["rows"] if row["keep"] in (0.8, 0.7, 0.54)]
        for phase in rows[0]["measured"]:
            shares = [f"{row['measured'][phase] / row['ideal'][phase]:.2f}" for row in rows]
            told.append(f"{name}, {phase}: {', '.join(shares)}")
    return "; ".join(told)


def _goal(found: Any) -> str:
    (one,) = found["cases"].values()
    return ", ".join(f"{phase} {share}" for phase, share in one["goal"].items())


def _memory(found: Any) -> str:
    shares = [
        f"{one['peak'] / (one['dense'] + one['table']):.2f} ({refit})"
        for refit, one in found["runs"].items()
    ]
    return ", ".join(shares)


def _calibration(found: Any) -> str:
    stage, widths = found["study"]["stages"]["calibration"], found["study"]["refit"]
    return f"{stage['seconds'] / 60:.1f} minutes ({widths})"


def _thousand(found: Any) -> str:
    return f"{found['study']['trial_s'] * 1000 / 60:.1f} minutes"


def _error(found: Any) -> str:
    return "; ".join(
        f"{name}: {', '.join(format(one['error'], '.1%') for one in pair)}"
        for name, pair in found["tables"].items()
    )


TARGETS = (
    Target(
        "evaluation at keep 0.5 over dense evaluation, same samples", "at most 0.60",
        (("trial_cost-7b", _over_dense), ("trial_cost", _over_dense)),
    ),
    Target(
        "time of a trial outside model code",
        "at most 5 % on the 7B shape; 10 ms on the digits study",
        (("trial_cost-7b", _share), ("trial_cost", _rest)),
    ),
    Target(
        "64-sample evaluation, dense 7B shape, H200, bf16, cached vision features",
        "at most 1.2 s (floor about 0.7 s)", (("trial_cost-7b", _plain),),
    ),
    Target("1,000 policies, 7B shape, H200", "at most 20 minutes", (("scale-7b", _thousand),)),
    Target(
        "measured speed-up over ideal at keep 0.8, 0.7, 0.54, prefill and graphed decode, H200",
        "at least 0.90", (("speedup-7b", _of_ideal), ("speedup", _of_ideal)),
    ),
    Target(
        "largest kept share of the decoder with measured 1.8x, prefill and graphed decode, 7B "
        "shape, H200",
        "at least 0.50 (ideal about 0.54)", (("speedup-7b", _goal),),
    ),
    Target(
        "peak memory of a search over dense weights, and the refit table",
        "at most 1.15", (("memory-4096", _memory), ("memory", _memory)),
    ),
    Target(
        "calibration of the 7B shape on H200 (statistics, orders, refit table)",
        "at most 10 minutes", (("scale-7b", _calibration),),
    ),
    Target(
        "putting one policy on, 7B shape", "at most 20 ms",
        (("trial_cost-7b", _put_on), ("trial_cost", _put_on)),
    ),
    Target(
        "error of the latency table, mean of at least 20 policies",
        "at most 3 % on a GPU, 8 % on two noisy cores",
        (("latency_model-7b", _error), ("latency_model", _error)),
    ),
)  # fmt: skip


def section() -> str:
    """Write the section of RESULTS.md."""
    rows = [target.row() for target in TARGETS]
    return f"""Generated by `python benchmarks/targets.py` from the results of the other scripts;
do not edit. For the GPU: `python benchmarks/gpu.py`, `python benchmarks/scale.py` and
`python benchmarks/memory.py --hidden 4096 --layers 32 --device cuda --dtype bfloat16`. What
stands here from a CPU says nothing about a GPU.

| figure | target | measured |
|---|---|---|
{chr(10).join(rows)}"""


def main(words: Sequence[str] | None = None) -> None:
    """Write the table; with ``--print``, only show it."""
    text = section()
    print(text)
    if words is None or "--print" not in words:
        put_section("Targets", text, first=True)


if __name__ == "__main__":
    main()
