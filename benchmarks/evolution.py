"""Does evolution help? ``python benchmarks/evolution.py``.

Samplers and baselines without a search, all under one basis (the projector stays as it was
loaded), within one budget: a share of the decoder's weights. Searches measure 240 policies each;
every method chooses by validation among its five best on the proxy. Two models, many draws each.

``--tiny`` does this in seconds and writes nothing; ``--small`` in a minute or two.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from _evidence import (
    FIXED,
    Case,
    Lab,
    announce,
    begin,
    bench_of,
    best,
    examined,
    pairs_of,
    publish,
    study_name,
)
from _means import ahead, by_pair, label, markdown, mean, shares_of

from effllava_optuna.baselines import (
    additive,
    global_rank,
    greedy,
    one_number,
    switched,
    two_numbers,
)
from effllava_optuna.policy import Policy
from effllava_optuna.study.calibrating import probe
from effllava_optuna.surgery import survey
from effllava_optuna.surgery.rank import unit_scores
from effllava_optuna.tasks import encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from effllava_optuna.policy import SiteId
    from effllava_optuna.study.evolution import Epochs

TITLE = "Search against other ways to spend a budget"
SEARCHES = {
    "nsga2": "NSGA-II, ours",
    "cma": "CMA-ES, ours",
    "stock-nsga2": "NSGA-II, Optuna's",
    "tpe": "TPE",
    "random": "random",
}
BASELINES = (
    "two numbers",
    "one number",
    "FLAP's global rank",
    "greedy by damage curves",
    "additive programme over damage curves",
    "level switches, 1 + 16 (EvoPress)",
)
OFFSPRING = 16


def case_of(sampler: str) -> Case:
    """Give the study of a sampler."""
    if sampler == "nsga2":
        return FIXED
    return Case(sampler, (*FIXED.changes, f"search.sampler={sampler}"))


class Rivals:
    """Finds policies without a sampler, counting what it measures.

    Args:
        epochs: A study whose search has not begun.
    """

    def __init__(self, epochs: Epochs) -> None:
        self.epochs = epochs
        self.bench = bench_of(epochs)
        self.basis = epochs.basis_of(0)
        self.widths = self.bench.bundle.widths
        self.costs = epochs.budget.costs
        self.bound = float(epochs.budget.bound or 1.0)

    def within(self, grid: Iterable[Policy]) -> list[Policy]:
        """Keep what is affordable."""
        return [p for p in grid if self.epochs.budget.allows(self.bench.anatomy, p)]

    def qualities(self, policies: Sequence[Policy]) -> dict[Policy, float]:
        """Measure policies on the proxy, cross-fitted."""
        return {policy: self.bench.measure(policy, self.basis).quality for policy in policies}

    def chosen(self, known: Mapping[Policy, float]) -> dict[str, Any]:
        """Choose as a study does: by validation among the best on the proxy."""
        finalists = sorted(known, key=lambda policy: -known[policy])
        finalists = finalists[: self.epochs.spec.report.finalists]
        return best(
            [examined(self.bench, p, self.basis) | {"quality": known[p]} for p in finalists]
        )

    def curves(self) -> dict[SiteId, dict[int, float]]:
        """Measure what narrowing one site alone adds to the loss; no wider width is worse."""
        anatomy = self.bench.anatomy
        dense = Policy.dense(anatomy)
        known: dict[SiteId, dict[int, float]] = {}
        whole = -self.bench.measure(dense, self.basis).log_probability
        for index, site in enumerate(anatomy.sites):
            row, worst = {site.width: 0.0}, 0.0
            for width in reversed(self.widths[site.id][:-1]):
                keep = [width if i == index else k for i, k in enumerate(dense.keep)]
                loss = -self.bench.measure(Policy.of(anatomy, keep), self.basis).log_probability
                worst = max(worst, loss - whole)
                row[width] = worst
            known[site.id] = row
        return known

    def flap(self) -> dict[SiteId, np.ndarray[Any, Any]]:
        """Score units as FLAP does, tokens weighted as everywhere here."""
        loaded = self.bench.loaded
        batches = [probe(batch) for batch in encode(loaded.processor, self.bench.proxy)]
        told = survey(loaded, loaded.handles, batches, full=False)
        return {
            handle.site.id: unit_scores(loaded, handle, "flap", told[handle.site.id])
            for handle in loaded.handles
        }

    def switches(self, evaluations: int, seed: int) -> dict[Policy, float]:
        """Evolve one parent by level switches from the best affordable one-number policy."""
        anatomy, rng = self.bench.anatomy, np.random.default_rng([seed, 41])
        largest = max(
            self.within(one_number(anatomy, self.widths)), key=lambda p: p.kept_share(anatomy)
        )
        known = self.qualities([largest])
        parent = largest
        while len(known) < evaluations:
            children: dict[Policy, None] = {}
            for _ in range(20 * OFFSPRING):
                if len(children) >= min(OFFSPRING, evaluations - len(known)):
                    break
                child = switched(anatomy, self.widths, parent, self.costs, self.bound, rng)
                if child not in known:
                    children[child] = None
            if not children:
                break
            known |= self.qualities([*children])
            parent = max(known, key=known.__getitem__)
        return known


def baselines(lab: Lab, model: str, seed: int) -> dict[str, Any]:
    """Find and measure what needs no sampler."""
    with lab.opened(model, seed, FIXED) as epochs:
        rivals = Rivals(epochs)
        anatomy, widths = rivals.bench.anatomy, rivals.widths
        found: dict[str, Any] = {}

        def note(name: str, before: int, entry: Mapping[str, Any]) -> None:
            found[name] = dict(entry) | {"evaluations": rivals.bench.evaluations - before}

        for name, grid in (("two numbers", two_numbers), ("one number", one_number)):
            before = rivals.bench.evaluations
            known = rivals.qualities(rivals.within(grid(anatomy, widths)))
            note(name, before, rivals.chosen(known))
        told = (anatomy, widths)
        ranked = global_rank(*told, rivals.flap(), rivals.costs, rivals.bound)
        note(BASELINES[2], rivals.bench.evaluations, examined(rivals.bench, ranked, rivals.basis))
        before = rivals.bench.evaluations
        curves = rivals.curves()
        for name, way in ((BASELINES[3], greedy), (BASELINES[4], additive)):
            policy = way(*told, curves, rivals.costs, rivals.bound)
            note(name, before, examined(rivals.bench, policy, rivals.basis))
        before = rivals.bench.evaluations
        note(BASELINES[5], before, rivals.chosen(rivals.switches(epochs.spec.search.trials, seed)))
        dense = examined(rivals.bench, Policy.dense(anatomy), rivals.basis)
        return {"model": model, "seed": seed, "dense": dense, "rivals": found}


def searches_of(lab: Lab) -> dict[str, str]:
    """Give the samplers; in the tiny form two."""
    return dict([*SEARCHES.items()][: lab.form.pick(5, 5, 2)])


def gather(lab: Lab) -> dict[str, list[dict[str, Any]]]:
    """Run, or read, all that is compared; give rows by method."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for model, seed in pairs_of(lab.form):
        whole: dict[str, dict[str, Any]] = {}
        for sampler, name in searches_of(lab).items():
            if found := lab.study(model, seed, case_of(sampler)):
                whole[name] = found | {"one": found["chosen"]}
        found = lab.unit(
            f"baselines-{model}-{seed}", functools.partial(baselines, lab, model, seed)
        )
        if found:
            dense = found["dense"] | {"evaluations": 0}
            for name, one in (*found["rivals"].items(), ("dense", dense)):
                more = {"one": one, "evaluations": one["evaluations"], "search_cpu_s": None}
                whole[name] = found | more
        keeps = {name: row["one"]["keep"] for name, row in whole.items() if name != "dense"}
        timed = lab.timed(f"timed-{model}-{seed}", model, seed, keeps)
        for name, row in whole.items():
            rows.setdefault(name, []).append(row | {"share": timed.get("shares", {}).get(name)})
    return rows


def section(rows: Mapping[str, Sequence[Mapping[str, Any]]], models: Mapping[str, str]) -> str:
    """Write the table."""
    first = by_pair(rows["NSGA-II, ours"], "one", "test")
    lines = []
    for name in ("dense", *SEARCHES.values(), *BASELINES):
        mine = rows.get(name)
        if not mine:
            continue
        tests = by_pair(mine, "one", "test")
        each = [
            mean([value for (at, _), value in tests.items() if at == model]).told()
            for model in models
        ]
        cpu = [row["search_cpu_s"] for row in mine if row["search_cpu_s"] is not None]
        lines.append(
            [
                name,
                *each,
                ahead(tests, first).told("+") if name != "NSGA-II, ours" else "-",
                f"{np.mean([row['one']['kept_share'] for row in mine]):.3f}",
                f"{np.mean([row['one']['latency_ms'] for row in mine]):.1f}",
                mean(shares_of(mine)).told() if name != "dense" else "1",
                f"{np.mean([row['evaluations'] for row in mine]):.0f}",
                f"{np.mean(cpu):.0f}" if cpu else "below a search",
            ]
        )
    head = [
        "method", *(f"test, {label(path)}" for path in models.values()), "minus NSGA-II, ours",
        "kept share", "latency by the table, ms", "measured, share of dense", "evaluations",
        "CPU s of the search",
    ]  # fmt: skip
    pairs, seeds = len(first), max(seed for _, seed in first) + 1
    return f"""Generated by `python benchmarks/evolution.py`; do not edit. Figures:
`results/evidence`.

Test accuracy on 1,000 questions over digit images that neither calibration nor search has seen,
means over draws (up to {seeds} a model); in brackets 95 % intervals (Student's t over draws;
the differences paired, over {pairs} pairs of model and draw). All have the same calibration,
projector as loaded, eta 0.02 and at most 22.5 % of the decoder's weights. Measured: the choices of
a draw, run whole, in turn with the dense model. Damage curves: what narrowing one site alone adds
to the cross-fitted loss on the proxy.

{markdown(head, lines)}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write the table."""
    form, _ = begin(__doc__, arguments, two=True)
    lab = Lab(form)
    names = [study_name(m, s, case_of(n)) for m, s in pairs_of(form) for n in searches_of(lab)]
    names += [f"{kind}-{m}-{s}" for m, s in pairs_of(form) for kind in ("baselines", "timed")]
    announce(lab.missing(names), form.pick(20, 15, 3))
    rows = gather(lab)
    origins = [row["provenance"] for mine in rows.values() for row in mine]
    publish(form, TITLE, section(rows, form.models), origins)


if __name__ == "__main__":
    main()
