"""How long does the importance ``obs`` take? ``python benchmarks/importance_time.py``.

The units of components of several sizes are ranked by `elimination_order`, and their output
matrices are fitted for every width as a study fits them, one after the other on one thread, with
drawn weights and moments. Times are those of the processor. The widest component is ranked only.
With ``--device cuda`` on a GPU: wall time, all components are fitted.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from _means import markdown
from _pages import publish
from _results import origin_line, provenance
from _sentences import paragraph, value_range

from effllava_optuna.config.schema import WIDTH_RATIOS
from effllava_optuna.surgery.compensation.least_squares import choose_damping, least_squares
from effllava_optuna.surgery.importance.elimination import elimination_order
from effllava_optuna.surgery.importance.moments import Moments, WeightedSums

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_FITTED_ON_CPU = 4096  # columns


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of an output matrix.

    Attributes:
        name: The component.
        out: Rows.
        columns: Columns.
        unit_columns: Columns of one unit.
    """

    name: str
    out: int
    columns: int
    unit_columns: int = 1


SHAPES = (
    Shape("SmolLM2-135M, attention", 576, 576, 192),
    Shape("SmolLM2-135M, MLP", 576, 1536),
    Shape("LLaVA-1.5-7B, attention", 4096, 4096, 128),
    Shape("4,096 channels", 4096, 4096),
    Shape("LLaVA-1.5-7B, MLP", 4096, 11008),
)
TINY = (Shape("tiny attention", 16, 32, 8), Shape("tiny MLP", 16, 64))


def drawn_fold(columns: int, generator: torch.Generator) -> Moments:
    """Draw the moments of inputs whose columns have unequal scales."""
    device = generator.device
    scales = torch.rand(columns, generator=generator, dtype=torch.float64, device=device)
    x = torch.randn(1024, columns, generator=generator, dtype=torch.float64, device=device)
    ones = torch.ones(len(x), dtype=torch.float64, device=device)
    return Moments(WeightedSums.of(x * scales, ones, full=True))


def measure(shape: Shape, device: str, *, fitted: bool) -> dict[str, Any]:
    """Rank and fit one component; return the seconds of both."""
    generator = torch.Generator(device).manual_seed(0)
    folds = [drawn_fold(shape.columns, generator) for _ in range(2)]
    weight = torch.randn(shape.out, shape.columns, generator=generator, device=device)
    total = folds[0] + folds[1]
    seconds = {
        "ranking": _seconds(
            lambda: elimination_order(weight.double(), total.matrix, shape.unit_columns), device
        )
    }
    if fitted:
        units = shape.columns // shape.unit_columns
        widths = sorted({max(1, round(ratio * units)) for ratio in WIDTH_RATIOS} - {units})
        columns = [width * shape.unit_columns for width in widths]
        seconds["fitting"] = _seconds(lambda: _fit(weight, folds, columns), device)
    return {**asdict(shape), "seconds": seconds}


def _fit(weight: torch.Tensor, folds: Sequence[Moments], columns: Sequence[int]) -> None:
    """Fit a weight as `fit_component` does: on all folds, and without each."""
    ranking = torch.arange(weight.shape[1], device=weight.device)
    damping = choose_damping(weight, folds, ranking, columns[:: max(1, len(columns) // 3)])
    for matrix in ((folds[0] + folds[1]).matrix, folds[1].matrix, folds[0].matrix):
        least_squares(weight, matrix, columns, damping)


def _seconds(run: Callable[[], object], device: str) -> float:
    """Return the processor time of a call, or the wall time of a call on a GPU."""
    if device == "cpu":
        started = time.process_time()
        run()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def summary(figures: Mapping[str, Any]) -> str:
    """Return the main figures."""
    seconds = [run["seconds"] for run in figures["components"]]
    ratios = [each["ranking"] / each["fitting"] for each in seconds if each.get("fitting")]
    widest = max(figures["components"], key=lambda run: run["columns"])
    return paragraph(f"""
        Ranking the units of a component by `obs` takes {value_range(ratios)} of the time of
        fitting its output matrices, and {widest["seconds"]["ranking"]:.3g} s for
        {widest["columns"]:,} columns.""")


def section(figures: Mapping[str, Any]) -> str:
    """Format the page of the benchmark."""
    lines = []
    for run in figures["components"]:
        seconds = run["seconds"]
        fitting = seconds.get("fitting")
        lines.append(
            [
                run["name"],
                f"{run['columns']:,}",
                f"{run['unit_columns']}",
                f"{seconds['ranking']:.3g}",
                "not run" if fitting is None else f"{fitting:.3g}",
                "" if fitting is None else f"{seconds['ranking'] / fitting:.2f}",
            ]
        )
    head = ["component", "columns", "columns a unit", "ranking", "fitting", "ratio"]
    clock = "Seconds of one processor" if figures["device"] == "cpu" else "Seconds, wall time"
    return f"""{summary(figures)}

Generated by `python benchmarks/importance_time.py`; do not edit. Figures:
[results](../results/{figures["file"]}.json).

{clock}, one run each: ranking the units of one component by `obs`, and fitting its output matrix
for every width of the default `pruning.width_ratios` in two folds, for comparison. Activation
statistics, which both need, are not included.

{markdown(head, lines)}

{origin_line(figures["provenance"])}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="run for seconds; publish nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("a second" if options.tiny else "about 10 minutes")
    shapes = TINY if options.tiny else SHAPES
    components = [
        measure(
            shape,
            options.device,
            fitted=options.device != "cpu" or shape.columns <= _FITTED_ON_CPU,
        )
        for shape in shapes
    ]
    figures = {
        "file": "importance_time" if options.device == "cpu" else "importance_time-gpu",
        "provenance": provenance(options.device),
        "device": options.device,
        "components": components,
    }
    if options.tiny:
        print(section(figures))
        return
    title = "Time of the importance obs" + ("" if options.device == "cpu" else ", on a GPU")
    publish(str(figures["file"]), title, figures, section(figures))


if __name__ == "__main__":
    main()
