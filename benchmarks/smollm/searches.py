"""Is a search worth its time on a pretrained model? ``python benchmarks/smollm/searches.py``.

``smollm-vlm`` at predicted speed-ups from 1.2 to 2.2, all methods under the compensation
tables of one calibration per draw, with the projector as it was loaded. Searches measure the same
number of policies and choose by validation among their finalists. Every network is timed as a
whole, and measured on questions about pictures, which the search was for, and on text, which it
was not.

Every measurement leaves a record in ``results/smollm_searches.jsonl``, and is not repeated if it
has one. ``--tiny`` measures one speed-up of each kind, and publishes nothing.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
from _baselines import Baselines
from _cases import Case
from _curves import Panel, Point, draw_panels
from _fields import KEEP_RATIO
from _layer_dropping import LayerDropping
from _means import markdown
from _network_rows import accuracy_cell, accuracy_of, gain_cell, gain_of, mean_cell
from _pretrained_form import MODEL, measure_and_publish, pretrained_form
from _pretrained_search import PretrainedDraw
from _records import RecordId
from _sentences import gains, paragraph, plural
from _studies import StudyRunner

from effllava_optuna.allocation import (
    dynamic_programming,
    global_rank,
    residual_curves,
    uniform_by_kind,
    uniform_policies,
)
from effllava_optuna.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from _evidence import Form
    from _records import Record

    from effllava_optuna.policy import Policy
    from effllava_optuna.search.session import SearchSession

TITLE = "A pretrained model: allocation and search"
QUESTION = "smollm_searches"
SPEEDUPS = (1.2, 1.5, 1.8, 2.2)
_ALONE = ("search.curves='none'", "search.screening=false")
SEARCHES = {
    "the default search": (),
    "NSGA-II, ours, alone": _ALONE,
    "random": (*_ALONE, "search.sampler='random'"),
}
BY_KIND, UNIFORM, FLAP, PROGRAMMING = ALLOCATIONS = (
    "uniform by kind",
    "uniform",
    "FLAP's global rank",
    "dynamic programming over residual curves",
)
DROPPING = "layer dropping (ShortGPT)"
METHODS = (*SEARCHES, *ALLOCATIONS, DROPPING)
_QUOTED = (PROGRAMMING, FLAP, BY_KIND, "random", DROPPING)  # in the summary
_DRAWN = ("the default search", *ALLOCATIONS, DROPPING)
PICTURE = Path(__file__).parents[2] / "docs" / "images" / "smollm-searches.svg"
DENSE, CONSTANT = "dense", "a constant answer"
FIXED = ("projector.steps=0",)
_MODERATE = 1.8  # a predicted speed-up that hardly costs accuracy
_FIRST = 2.2  # whose searches are measured first: the others hardly cost accuracy
_SECONDS = 300.0  # of one core, for a record


def record_id(seed: int, method: str, speedup: float) -> RecordId:
    """Return the id of a record."""
    return RecordId(QUESTION, ("network", seed, method, speedup))


def case_of(speedup: float, changes: Sequence[str] = ()) -> Case:
    """Return the study of a speed-up."""
    return Case(f"{speedup:g}", (*FIXED, f"search.speedup={speedup}", *changes), QUESTION)


class SearchTables:
    """Measures the methods, and keeps the records.

    Args:
        form: How much is measured.
    """

    def __init__(self, form: Form) -> None:
        self.form, self.runner = form, StudyRunner(form)
        self.speedups = SPEEDUPS[: form.pick(len(SPEEDUPS), 1, 1)]
        tiny = form.name == "tiny"
        self.searches = dict([*SEARCHES.items()][: 1 if tiny else None])
        self.allocations = (UNIFORM,) if tiny else ALLOCATIONS

    def ids(self) -> list[RecordId]:
        """Return the ids of all records of the form."""
        return [
            record_id(seed, method, speedup)
            for seed in range(self.form.seeds)
            for method, speedup in (
                (DENSE, 1.0),
                (CONSTANT, 1.0),
                *product((*self.searches, *self.allocations, DROPPING), self.speedups),
            )
        ]

    def measure(self) -> None:
        """Measure what has no record: first what needs no search, of all draws."""
        draws = [PretrainedDraw(self.runner, seed) for seed in range(self.form.seeds)]
        order = sorted(self.speedups, key=lambda speedup: speedup != _FIRST)
        for draw in draws:
            self.runner.record(record_id(draw.seed, DENSE, 1.0), draw.dense)
            self.runner.record(record_id(draw.seed, CONSTANT, 1.0), draw.constant)
            for speedup in self.speedups:
                self._measure_allocations(draw, speedup)
        for speedup, draw in product(order, draws):
            self._measure_searches(draw, speedup)

    def _measure_searches(self, draw: PretrainedDraw, speedup: float) -> None:
        for name, changes in self.searches.items():
            case = case_of(speedup, changes)
            self.runner.record(record_id(draw.seed, name, speedup), partial(draw.searched, case))

    def _measure_allocations(self, draw: PretrainedDraw, speedup: float) -> None:
        ids = {name: record_id(draw.seed, name, speedup) for name in (*self.allocations, DROPPING)}
        if not self.runner.missing(ids.values()):
            return
        with self.runner.open(MODEL, draw.seed, case_of(speedup)) as session:
            for name in self.allocations:
                self.runner.record(ids[name], partial(allocated, draw, session, name))
            if self.form.device == "cpu":  # it stops at a measured speed-up
                self.runner.record(ids[DROPPING], partial(dropped, draw, session, speedup))


def allocation(session: SearchSession, name: str) -> Policy:
    """Return the policy of a method that needs no search, within the budget of the study.

    Raises:
        ValueError: There is no such method.
    """
    baselines = Baselines(session)
    structure, widths, costs = baselines.structure, baselines.widths, session.costs
    if name == UNIFORM:
        feasible = baselines.feasible(uniform_policies(structure, widths))
        return max(feasible, key=lambda policy: policy.keep_ratio)
    if name == BY_KIND:
        largest = costs.maximal(uniform_by_kind(structure, widths))
        qualities = baselines.qualities(largest)
        return max(qualities, key=qualities.__getitem__)
    if name == FLAP:
        return global_rank(structure, widths, baselines.flap_scores(), costs)
    if name == PROGRAMMING:
        space = baselines.evaluator.first_space()
        curves = residual_curves(space, baselines.evaluator.calibration.residuals)
        return dynamic_programming(space, curves, costs)
    raise ValueError(f"{name!r} is no allocation.")


def allocated(draw: PretrainedDraw, session: SearchSession, name: str) -> dict[str, Any]:
    """Measure the policy of a method that needs no search."""
    weight_state = session.epochs.epoch(0).weight_state
    return draw.policy_figures(session, allocation(session, name), weight_state)


def dropped(draw: PretrainedDraw, session: SearchSession, speedup: float) -> dict[str, Any]:
    """Remove as few blocks as have the measured speed-up, and measure the rest."""
    dropping = LayerDropping(session)
    removed, measured = dropping.fastest_enough(speedup)
    policy, measures = dropping.policy(removed), draw.measures
    with dropping.network(policy) as network:
        return measures.figures(network) | {
            "removed": sorted(dropping.order[:removed]),
            KEEP_RATIO: round(policy.keep_ratio, 4),
            "predicted": None,
            "measured": round(measured, 4),
        }


def by_draw(
    records: Mapping[tuple[Any, ...], Record], form: Form, method: str, speedup: float
) -> dict[int, Record]:
    """Return the records of a method by draw."""
    keys = {seed: (seed, method, speedup) for seed in range(form.seeds)}
    return {seed: records[key] for seed, key in keys.items() if key in records}


def picture(records: Mapping[tuple[Any, ...], Record], form: Form) -> str:
    """Draw accuracy and agreement against the measured speed-up."""
    accuracy: dict[str, list[Point]] = {}
    agreement: dict[str, list[Point]] = {}
    for method in _DRAWN:
        for speedup in SPEEDUPS:
            rows = by_draw(records, form, method, speedup)
            if not rows:
                continue
            timed = [row["measured"] for row in rows.values() if row["measured"] is not None]
            measured = statistics.mean(timed)
            agreed = [row["agreement"] for row in rows.values()]
            accuracy.setdefault(method, []).append(Point(measured, *accuracy_of(rows)))
            point = Point(measured, statistics.mean(agreed), min(agreed), max(agreed))
            agreement.setdefault(method, []).append(point)
    dense = by_draw(records, form, DENSE, 1.0)
    across = "measured speed-up of the prefill"
    return draw_panels(
        "SmolLM2-135M in a LLaVA, pruned for questions about pictures",
        [
            Panel(
                "What it was pruned for: questions about pictures", across, "accuracy",
                accuracy, ("dense model", accuracy_of(dense)[0]),
            ),
            Panel(
                "What else it keeps: answers to questions about words", across,
                "agreement with the dense model", agreement, ("dense model", 1.0),
            ),
        ],
    )  # fmt: skip


def summary(records: Mapping[tuple[Any, ...], Record], form: Form) -> str:
    """Return the main figures: those of the fastest policies that were searched for."""
    of = partial(by_draw, records, form)
    (default, *_) = SEARCHES
    dense = f"The dense model has an accuracy of {accuracy_cell(of(DENSE, 1.0))}."
    searched = [speedup for speedup in SPEEDUPS if of(default, speedup)]
    if not searched:
        return paragraph(dense)
    fastest = max(searched)
    rows = of(default, fastest)
    others = [(name, gain) for name in _QUOTED if (gain := gain_of(of(name, fastest), rows)).count]
    return paragraph(f"""
        {dense} At a predicted speed-up of {fastest:g}, the default search keeps
        {accuracy_cell(rows)} ({plural(len(rows), "draw")}). Differences to it: {gains(others)}.
        {_measured(of, fastest)} {_moderate(of)} What a policy was not pruned for is lost: of the
        tokens of the dense model's answers about words, the policy of the search predicts
        {_per_cent(rows)} %{_floor(of)}.""")


def _per_cent(rows: Mapping[int, Record]) -> str:
    """Format the agreement of a network in per cent."""
    return f"{100 * statistics.mean(row['agreement'] for row in rows.values()):.1f}"


def _floor(of: Callable[[str, float], Mapping[int, Record]]) -> str:
    """Say in parentheses what a constant answer predicts."""
    rows = of(CONSTANT, 1.0)
    return f" (a constant: {_per_cent(rows)} %)" if rows else ""


def _measured(of: Callable[[str, float], Mapping[int, Record]], speedup: float) -> str:
    """Say how fast methods are measured to be that have the same predicted speed-up."""
    (default, *_) = SEARCHES
    searched, by_kind = (
        [row["measured"] for row in of(name, speedup).values()] for name in (default, BY_KIND)
    )
    if not (searched and by_kind):
        return ""
    return (
        f"Measured, the search is {statistics.mean(searched):.2f} times as fast, and {BY_KIND} "
        f"{statistics.mean(by_kind):.2f} times."
    )


def _moderate(of: Callable[[str, float], Mapping[int, Record]]) -> str:
    """Say how methods compare where accuracy hardly suffers."""
    (default, *_) = SEARCHES
    rows = of(default, _MODERATE)
    others = [
        (name, gain)
        for name in (PROGRAMMING, BY_KIND)
        if (gain := gain_of(of(name, _MODERATE), rows)).count
    ]
    if not others:
        return ""
    return (
        f"At {_MODERATE:g} the search keeps {accuracy_cell(rows)}; differences: {gains(others)}."
    )


def section(records: Mapping[tuple[Any, ...], Record], form: Form) -> str:
    """Format the page of the benchmark."""
    of = partial(by_draw, records, form)
    (default, *_) = SEARCHES
    floors = markdown(
        ["", "accuracy", "perplexity", "agreement"],
        [
            [
                name,
                accuracy_cell(of(name, 1.0)),
                mean_cell(of(name, 1.0), "perplexity"),
                mean_cell(of(name, 1.0), "agreement"),
            ]
            for name in (DENSE, CONSTANT)
        ],
    )
    parts = []
    for speedup in SPEEDUPS:
        lines = [
            [
                method,
                str(len(of(method, speedup))),
                accuracy_cell(of(method, speedup)),
                "" if method == default else gain_cell(of(method, speedup), of(default, speedup)),
                *(
                    mean_cell(of(method, speedup), field)
                    for field in ("measured", KEEP_RATIO, "perplexity", "agreement")
                ),
            ]
            for method in METHODS
            if of(method, speedup)
        ]
        head = [
            "method", "draws", "accuracy", "minus the default search", "measured speed-up",
            "weights kept", "perplexity", "agreement",
        ]  # fmt: skip
        if lines:
            parts.append(f"Predicted speed-up {speedup:g}:\n\n{markdown(head, lines)}")
    searches = [r for name in SEARCHES for s in SPEEDUPS for r in of(name, s).values()]
    evaluations = searches[0]["evaluations"] if searches else 0
    text = "\n\n".join(parts)
    return f"""{summary(records, form)}

Generated by `python benchmarks/smollm/searches.py`; do not edit. Figures:
[results](../results/{QUESTION}.jsonl).

`smollm-vlm`, the settings of `benchmarks/smollm/tables.toml` (32 proxy samples), the projector as
it was loaded. Searches measure {evaluations} policies at most and choose by validation among their
finalists. Accuracy on questions about pictures, perplexity of glosses of WordNet, and
agreement with the dense model's answers to questions about words: the search has seen only
questions about pictures. Speed-ups are of the prefill of one prompt on one core, measured in turn
with the dense model. Layer dropping removes as few blocks as have the *measured* speed-up.
Accuracies have 95 % intervals (bootstrap over pictures), differences are paired by picture; other
figures are means over draws with their range.

{floors}

{text}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has no record, and write the section."""
    tables = SearchTables(pretrained_form(__doc__, arguments))
    measure_and_publish(tables, TITLE, _SECONDS, section)
    if tables.form.published:
        records = {each.key[1:]: row for each, row in tables.runner.existing(tables.ids()).items()}
        write_atomically(PICTURE, picture(records, tables.form))


if __name__ == "__main__":
    main()
