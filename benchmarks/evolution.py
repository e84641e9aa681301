"""Does evolution help? ``python benchmarks/evolution.py``.

The default search, the same without each of its parts, other samplers, and baselines without a
sampler, all under one weight state (the projector stays as it was loaded) and within one budget: a
share of the decoder's weights. Searches measure 240 policies each (one of them 120); every method
chooses by validation among its five finalists. Two models, many draws of each; a selection of the
methods at a smaller budget as well.

``--tiny`` does this in seconds and publishes nothing; ``--small`` in a minute or two.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from _baselines import Baselines
from _cases import FIXED, Case, study_id
from _evidence import announce, pairs_of, parse_form, publish
from _fields import KEEP_RATIO
from _means import by_model, by_pair, difference, label, markdown, mean
from _records import RecordId
from _sentences import gains, paragraph
from _studies import StudyRunner

from effllava_optuna.allocation import (
    dynamic_programming,
    global_rank,
    greedy,
    residual_curves,
    uniform_by_kind,
    uniform_policies,
)
from effllava_optuna.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _evidence import Form
    from _means import Rows
    from _records import Record

TITLE = "Search against other ways to spend a budget"
REFERENCE = "the default"
_MOST_DRAWS = (10, 5)
_ALLOCATE = ("search.sampler='allocation'", "search.epochs=1")
_ALONE = ("search.curves='none'", "search.screening=false")


@dataclass(frozen=True, slots=True)
class Search:
    """A search that is compared with the default.

    Attributes:
        name: Its row in the table.
        changes: Settings that differ from the quickstart study.
        setting: The setting of the study file that distinguishes it from the default.
        draws: Number of draws of each model at each of the `BUDGETS`.
    """

    name: str
    changes: tuple[str, ...]
    setting: str
    draws: tuple[int, int] = (5, 0)


SEARCHES = {
    "default": Search(REFERENCE, (), "", _MOST_DRAWS),
    "half": Search(
        "the default, 120 evaluations", ("search.generations=2",), "evaluations", _MOST_DRAWS
    ),
    "no-curves": Search("no curves", ("search.curves='none'",), "search.curves"),
    "measured": Search("measured curves", ("search.curves='measured'",), "search.curves"),
    "no-screening": Search("no screening", ("search.screening=false",), "search.screening"),
    "in-context-1": Search(
        "curves in context, 1 level", ("search.trust_region=1",), "search.trust_region"
    ),
    "fitted-in-context": Search(
        "compensation in context", ("pruning.in_context=true",), "pruning.in_context"
    ),
    "cma": Search("CMA-ES, seeded and screened", ("search.sampler='cma'",), "search.sampler"),
    "spdy": Search(
        "GPSampler over coefficients (SPDY)", ("search.sampler='spdy'",), "search.sampler", (3, 0)
    ),
    "allocate": Search(
        "allocate, residual curves",
        (*_ALLOCATE, "search.generations=1"),
        "search.sampler",
        _MOST_DRAWS,
    ),
    "allocate-measured": Search(
        "allocate, measured curves",
        (*_ALLOCATE, "search.generations=6", "search.curves='measured'"),
        "search.sampler",
        _MOST_DRAWS,
    ),
    "nsga2-alone": Search("NSGA-II, ours, alone", _ALONE, "search.sampler", _MOST_DRAWS),
    "cma-alone": Search(
        "CMA-ES, ours, alone", (*_ALONE, "search.sampler='cma'"), "search.sampler", _MOST_DRAWS
    ),
    "stock-nsga2": Search(
        "NSGA-II, Optuna's", (*_ALONE, "search.sampler='stock-nsga2'"), "search.sampler"
    ),
    "tpe": Search("TPE", (*_ALONE, "search.sampler='tpe'"), "search.sampler", (10, 0)),
    "random": Search("random", (*_ALONE, "search.sampler='random'"), "search.sampler"),
}
BY_KIND, UNIFORM, FLAP, GREEDY, PROGRAMMING, BY_RESIDUALS, SWITCHES = BASELINES = (
    "uniform by kind",
    "uniform",
    "FLAP's global rank",
    "greedy over measured curves",
    "dynamic programming over measured curves",
    "dynamic programming over residual curves",
    "level switches, 1 + 16 (EvoPress)",
)
SMALLER = ", 15 %"
_SHARES = {"": 22.5, SMALLER: 15}
_QUOTED = (BY_RESIDUALS, SWITCHES, "random", BY_KIND)  # in the summary
BUDGETS = {"": (), SMALLER: ("search.keep_ratio=0.15",)}  # by the end of a record's name
_ALL_WIDTHS = 1000


def rivals() -> set[str]:
    """Return the names of the methods that the default search does not contain."""
    alone = {search.name for search in SEARCHES.values() if {*_ALONE} <= {*search.changes}}
    return alone | set(BASELINES) - {BY_RESIDUALS}


def case_of(key: str, budget: str = "") -> Case:
    """Return the study of a search, at one of the `BUDGETS`."""
    if key == "default" and not budget:
        return FIXED
    changes = (*FIXED.changes, *SEARCHES[key].changes, *BUDGETS[budget])
    return Case(key + budget, changes, "evolution")


def measure_baselines(runner: StudyRunner, model: str, seed: int, budget: str) -> Record:
    """Choose and measure the policies that need no sampler."""
    with runner.open(model, seed, case_of("nsga2-alone", budget)) as session:
        baselines = Baselines(session)
        structure, widths = baselines.structure, baselines.widths
        evaluator, costs = baselines.evaluator, session.costs
        space = evaluator.first_space()
        methods: dict[str, Any] = {}

        def add(name: str, first: int, figures: Mapping[str, Any]) -> None:
            """Add a method that has measured policies since evaluation ``first``."""
            methods[name] = dict(figures) | {"evaluations": evaluator.evaluations - first}

        for name, grid in ((BY_KIND, uniform_by_kind), (UNIFORM, uniform_policies)):
            first = evaluator.evaluations
            qualities = baselines.qualities(baselines.feasible(grid(structure, widths)))
            add(name, first, baselines.choose(qualities))
        ranked = global_rank(structure, widths, baselines.flap_scores(), costs)
        add(FLAP, evaluator.evaluations, baselines.figures(ranked))
        estimated = residual_curves(space, evaluator.calibration.residuals)
        policy = dynamic_programming(space, estimated, costs)
        add(BY_RESIDUALS, evaluator.evaluations, baselines.figures(policy))
        first = evaluator.evaluations
        curves = baselines.sensitivity_curves(_ALL_WIDTHS)
        for name, allocate in ((GREEDY, greedy), (PROGRAMMING, dynamic_programming)):
            add(name, first, baselines.figures(allocate(space, curves, costs)))
        first = evaluator.evaluations
        qualities = baselines.level_switches(session.config.search.trials, seed)
        add(SWITCHES, first, baselines.choose(qualities))
        dense = baselines.figures(Policy.dense(structure))
        return {"model": model, "seed": seed, "dense": dense, "methods": methods}


def baselines_id(model: str, seed: int, budget: str) -> RecordId:
    """Return the id of the record of `measure_baselines`."""
    return RecordId("evolution", ("baselines" + budget, model, seed))


def searches_of(form: Form, budget: str, seed: int) -> list[str]:
    """Return the keys of the searches at a budget that have a draw; the tiny form has two."""
    index = [*BUDGETS].index(budget)
    keys = [key for key, search in SEARCHES.items() if seed < search.draws[index]]
    return keys if form.name != "tiny" else ["default", "nsga2-alone"]


def pairs_at(form: Form, budget: str) -> list[tuple[str, int]]:
    """Return pairs of model and seed at a budget; smaller forms have one budget."""
    draws = dict(zip(BUDGETS, _MOST_DRAWS, strict=True))[budget]
    if budget and form.name in ("small", "tiny"):
        return []
    return [(model, seed) for model, seed in pairs_of(form) if seed < draws]


def gather(runner: StudyRunner, budget: str = "") -> dict[str, list[Record]]:
    """Run or read all methods at a budget; return rows by method, with what each chose."""
    rows: dict[str, list[Record]] = {}
    for model, seed in pairs_at(runner.form, budget):
        for key in searches_of(runner.form, budget, seed):
            if study := runner.study(model, seed, case_of(key, budget)):
                row = study | {"choice": study["chosen"]}
                rows.setdefault(SEARCHES[key].name, []).append(row)
        measure = functools.partial(measure_baselines, runner, model, seed, budget)
        if record := runner.record(baselines_id(model, seed, budget), measure):
            dense = record["dense"] | {"evaluations": 0}
            for name, choice in (*record["methods"].items(), ("dense", dense)):
                cost = {"evaluations": choice["evaluations"], "search_cpu_s": None}
                rows.setdefault(name, []).append(record | {"choice": choice} | cost)
    return rows


def table(rows: Mapping[str, Rows], models: Mapping[str, str]) -> str:
    """Format the rows of one budget."""
    reference = by_pair(rows[REFERENCE], "choice", "test")
    volumes = by_pair(rows[REFERENCE], "volume")
    lines = []
    for name in ("dense", *(search.name for search in SEARCHES.values()), *BASELINES):
        records = rows.get(name)
        if not records:
            continue
        tests = by_pair(records, "choice", "test")
        searched = "volume" in records[0]
        cpu = [row["search_cpu_s"] for row in records if row["search_cpu_s"] is not None]
        volume = difference(by_pair(records, "volume"), volumes) if searched else None
        is_reference = name == REFERENCE
        lines.append(
            [
                name,
                *by_model(tests, models),
                f"{min(tests.values()):.3f}",
                "-" if is_reference else difference(tests, reference).text("+"),
                "-" if is_reference or volume is None else volume.text("+"),
                f"{np.mean([row['choice'][KEEP_RATIO] for row in records]):.3f}",
                f"{np.mean([row['choice']['latency_ms'] for row in records]):.1f}",
                f"{np.mean([row['evaluations'] for row in records]):.0f}",
                f"{np.mean(cpu):.0f}" if cpu else "-",
                str(len(records)),
            ]
        )
    head = [
        "method", *(f"test, {label(path)}" for path in models.values()), "worst pair",
        "test, minus the default", "hypervolume, minus the default", "keep ratio",
        "latency by the table, ms", "evaluations", "CPU s of the search", "pairs",
    ]  # fmt: skip
    return markdown(head, lines)


def summary(tables: Mapping[str, Mapping[str, Rows]]) -> str:
    """Return the main figures, from the rows by budget."""
    sentences = []
    for budget, rows in tables.items():
        if not rows.get(REFERENCE):
            continue
        reference = by_pair(rows[REFERENCE], "choice", "test")
        dense = mean(list(by_pair(rows["dense"], "choice", "test").values()))
        others = [
            (name, difference(by_pair(rows[name], "choice", "test"), reference))
            for name in _QUOTED
            if name in rows
        ]
        sentences.append(
            f"With at most {_SHARES[budget]} % of the weights, the default search has a test "
            f"accuracy of {mean(list(reference.values())).text()} (dense: {dense.text()}; "
            f"{len(reference)} pairs of model and draw). Differences to it: {gains(others)}."
        )
    return paragraph(" ".join(sentences))


def section(tables: Mapping[str, Mapping[str, Rows]], models: Mapping[str, str]) -> str:
    """Format the page of the benchmark, from the rows by budget."""
    reference = by_pair(tables[""][REFERENCE], "choice", "test")
    pairs = len(reference)
    text = f"""{summary(tables)}

Generated by `python benchmarks/evolution.py`; do not edit. Figures:
[evolution](../results/evolution.jsonl).

Test accuracy on 1,000 questions about digit images that neither calibration nor search has seen,
means over draws; in brackets 95 % intervals (Student's t over draws; the differences paired, over
up to {pairs} pairs of model and draw). All have the same
calibration, projector as loaded, eta 0.02 and at most 22.5 % of the decoder's
weights. Hypervolume: of the five finalists of a search, by test accuracy and latency. Measured
curves: what narrowing one component alone adds to the cross-fitted loss on the proxy. Alone: a
sampler that begins with uniform policies, without curves and screening.

{table(tables[""], models)}"""
    for budget, rows in tables.items():
        if budget and rows.get(REFERENCE):
            text += f"""

The same with at most 15 % of the weights, over {len(rows[REFERENCE])} pairs:

{table(rows, models)}"""
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the missing records, and write the tables."""
    form = parse_form(__doc__, arguments, two_models=True, draws=_MOST_DRAWS[0])
    runner, ids = StudyRunner(form), []
    for budget in BUDGETS:
        for model, seed in pairs_at(form, budget):
            keys = searches_of(form, budget, seed)
            ids += [study_id(model, seed, case_of(key, budget)) for key in keys]
            ids.append(baselines_id(model, seed, budget))
    announce(runner.missing(ids), form.pick(30, 12, 3))
    tables = {budget: gather(runner, budget) for budget in BUDGETS}
    origins = [
        row["provenance"]
        for rows in tables.values()
        for records in rows.values()
        for row in records
    ]
    publish(form, TITLE, section(tables, form.models), origins)


if __name__ == "__main__":
    main()
