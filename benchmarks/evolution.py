"""Does evolution help? ``python benchmarks/evolution.py``.

Samplers, and baselines without a sampler, all under one weight state (the projector stays as it
was loaded) and within one budget: a share of the decoder's weights. Searches measure 240 policies
each; every method chooses by validation among its five best on the proxy. Two models, many draws
of each.

``--tiny`` does this in seconds and publishes nothing; ``--small`` in a minute or two.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from _baselines import Baselines
from _cases import FIXED, Case, study_id
from _evidence import announce, pairs_of, parse_form, publish
from _fields import KEEP_RATIO, LATENCY_RATIOS, WIDTHS
from _means import by_model, by_pair, difference, label, latency_ratios_of, markdown, mean
from _records import RecordId
from _studies import StudyRunner

from effllava_optuna.allocation import (
    dynamic_programming,
    global_rank,
    greedy,
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
REFERENCE = "NSGA-II, ours"
SEARCHES = {
    "nsga2": REFERENCE,
    "cma": "CMA-ES, ours",
    "stock-nsga2": "NSGA-II, Optuna's",
    "tpe": "TPE",
    "random": "random",
}
BY_KIND, UNIFORM, FLAP, GREEDY, PROGRAMMING, SWITCHES = BASELINES = (
    "uniform by kind",
    "uniform",
    "FLAP's global rank",
    "greedy over sensitivity curves",
    "dynamic programming over sensitivity curves",
    "level switches, 1 + 16 (EvoPress)",
)

_ALL_WIDTHS = 1000


def case_of(sampler: str) -> Case:
    """Return the study of a sampler."""
    if sampler == "nsga2":
        return FIXED
    return Case(sampler, (*FIXED.changes, f"search.sampler={sampler}"), "evolution")


def measure_baselines(runner: StudyRunner, model: str, seed: int) -> Record:
    """Choose and measure the policies that need no sampler."""
    with runner.open(model, seed, FIXED) as session:
        baselines = Baselines(session)
        structure, widths = baselines.structure, baselines.widths
        evaluator, costs = baselines.evaluator, session.costs
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
        first = evaluator.evaluations
        curves = baselines.sensitivity_curves(_ALL_WIDTHS)
        for name, allocate in ((GREEDY, greedy), (PROGRAMMING, dynamic_programming)):
            policy = allocate(evaluator.first_space(), curves, costs)
            add(name, first, baselines.figures(policy))
        first = evaluator.evaluations
        qualities = baselines.level_switches(session.config.search.trials, seed)
        add(SWITCHES, first, baselines.choose(qualities))
        dense = baselines.figures(Policy.dense(structure))
        return {"model": model, "seed": seed, "dense": dense, "methods": methods}


def baselines_id(model: str, seed: int) -> RecordId:
    """Return the id of the record of `measure_baselines`."""
    return RecordId("evolution", ("baselines", model, seed))


def timed_id(model: str, seed: int) -> RecordId:
    """Return the id of the record with the measured latencies of the choices."""
    return RecordId("evolution", ("timed", model, seed))


def searches_of(form: Form) -> dict[str, str]:
    """Return the samplers; the tiny form has two."""
    return dict([*SEARCHES.items()][: form.pick(5, 5, 2)])


def gather(runner: StudyRunner) -> dict[str, list[Record]]:
    """Run or read all methods; return rows by method, with the figures of the choice."""
    rows: dict[str, list[Record]] = {}
    for model, seed in pairs_of(runner.form):
        by_method: dict[str, Record] = {}
        for sampler, name in searches_of(runner.form).items():
            if study := runner.study(model, seed, case_of(sampler)):
                by_method[name] = study | {"choice": study["chosen"]}
        measure = functools.partial(measure_baselines, runner, model, seed)
        if record := runner.record(baselines_id(model, seed), measure):
            dense = record["dense"] | {"evaluations": 0}
            for name, choice in (*record["methods"].items(), ("dense", dense)):
                cost = {"evaluations": choice["evaluations"], "search_cpu_s": None}
                by_method[name] = record | {"choice": choice} | cost
        widths = {
            name: row["choice"][WIDTHS] for name, row in by_method.items() if name != "dense"
        }
        timed = runner.latency_ratios(timed_id(model, seed), model, seed, widths)
        ratios = timed.get(LATENCY_RATIOS, {})
        for name, row in by_method.items():
            rows.setdefault(name, []).append(row | {"latency_ratio": ratios.get(name)})
    return rows


def section(rows: Mapping[str, Rows], models: Mapping[str, str]) -> str:
    """Format the section of ``RESULTS.md``."""
    reference = by_pair(rows[REFERENCE], "choice", "test")
    lines = []
    for name in ("dense", *SEARCHES.values(), *BASELINES):
        records = rows.get(name)
        if not records:
            continue
        tests = by_pair(records, "choice", "test")
        cpu = [row["search_cpu_s"] for row in records if row["search_cpu_s"] is not None]
        lines.append(
            [
                name,
                *by_model(tests, models),
                difference(tests, reference).text("+") if name != REFERENCE else "-",
                f"{np.mean([row['choice'][KEEP_RATIO] for row in records]):.3f}",
                f"{np.mean([row['choice']['latency_ms'] for row in records]):.1f}",
                mean(latency_ratios_of(records)).text() if name != "dense" else "1",
                f"{np.mean([row['evaluations'] for row in records]):.0f}",
                f"{np.mean(cpu):.0f}" if cpu else "below a search",
            ]
        )
    head = [
        "method", *(f"test, {label(path)}" for path in models.values()), "minus NSGA-II, ours",
        "keep ratio", "latency by the table, ms", "measured, share of dense", "evaluations",
        "CPU s of the search",
    ]  # fmt: skip
    pairs, seeds = len(reference), max(seed for _, seed in reference) + 1
    return f"""Generated by `python benchmarks/evolution.py`; do not edit. Figures:
`results/evolution.jsonl`, `results/studies.jsonl`.

Test accuracy on 1,000 questions about digit images that neither calibration nor search has seen,
means over draws (up to {seeds} for each model); in brackets 95 % intervals (Student's t over
draws; the differences paired, over {pairs} pairs of model and draw). All have the same
calibration, projector as loaded, eta 0.02 and at most 22.5 % of the decoder's weights. Measured:
the choices of a draw, run whole, in turn with the dense model. Sensitivity curves: what narrowing
one component alone adds to the cross-fitted loss on the proxy.

The level switches were measured with an operator that moved equal numbers of levels up and down
(further levels down only to meet the budget); it was removed after commit aa94d04. Since then the
script uses `effllava_optuna.samplers.switch`, which weighs levels by their cost.

{markdown(head, lines)}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the missing records, and write the table."""
    form = parse_form(__doc__, arguments, two_models=True)
    runner, pairs = StudyRunner(form), pairs_of(form)
    ids = [
        study_id(model, seed, case_of(sampler))
        for model, seed in pairs
        for sampler in searches_of(form)
    ]
    ids += [make_id(*pair) for pair in pairs for make_id in (baselines_id, timed_id)]
    announce(runner.missing(ids), form.pick(20, 15, 3))
    rows = gather(runner)
    origins = [row["provenance"] for records in rows.values() for row in records]
    publish(form, TITLE, section(rows, form.models), origins)


if __name__ == "__main__":
    main()
