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
from _cases import FIXED, Case, study_id
from _evidence import announce, begin, pairs_of, publish
from _fields import KEEP_RATIO, WIDTHS
from _means import ahead, by_pair, label, markdown, mean, shares_of
from _outcome import best, examined
from _records import RecordId
from _studies import StudyRunner, evaluator_of

from effllava_optuna.baselines import additive, global_rank, greedy, one_number, two_numbers
from effllava_optuna.policy import Policy
from effllava_optuna.samplers import Grid, repair, switch
from effllava_optuna.study.calibrating import probe
from effllava_optuna.surgery import survey
from effllava_optuna.surgery.rank import unit_scores
from effllava_optuna.tasks import encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from _evidence import Form
    from _records import Record

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
MOST_SWITCHES = 3


def case_of(sampler: str) -> Case:
    """Return the study of a sampler."""
    if sampler == "nsga2":
        return FIXED
    return Case(sampler, (*FIXED.changes, f"search.sampler={sampler}"), "evolution")


class Rivals:
    """Finds policies without a sampler, and counts what it measures.

    Args:
        epochs: A study before its first trial.
    """

    def __init__(self, epochs: Epochs) -> None:
        self.epochs = epochs
        self.evaluator = evaluator_of(epochs)
        self.basis = epochs.basis_of(0)
        self.widths = self.evaluator.bundle.widths
        self.costs = epochs.budget.costs
        self.bound = float(epochs.budget.bound or 1.0)

    def within(self, grid: Iterable[Policy]) -> list[Policy]:
        """Return the policies that are within the budget."""
        anatomy = self.evaluator.anatomy
        return [policy for policy in grid if self.epochs.budget.allows(anatomy, policy)]

    def qualities(self, policies: Sequence[Policy]) -> dict[Policy, float]:
        """Measure policies on the proxy, cross-fitted."""
        return {policy: self.evaluator.measure(policy, self.basis).quality for policy in policies}

    def examined(self, policy: Policy) -> dict[str, Any]:
        """Return the costs of a policy, and its accuracy on validation and test."""
        return examined(self.evaluator, policy, self.basis)

    def chosen(self, qualities: Mapping[Policy, float]) -> dict[str, Any]:
        """Choose by validation among the best on the proxy, as a study does."""
        finalists = sorted(qualities, key=lambda policy: -qualities[policy])
        finalists = finalists[: self.epochs.spec.report.finalists]
        return best(
            [self.examined(policy) | {"quality": qualities[policy]} for policy in finalists]
        )

    def curves(self) -> dict[SiteId, dict[int, float]]:
        """Measure what narrowing one site alone adds to the loss; no wider width is worse."""
        anatomy = self.evaluator.anatomy
        dense = Policy.dense(anatomy)
        curves: dict[SiteId, dict[int, float]] = {}
        dense_loss = self._loss(dense)
        for index, site in enumerate(anatomy.sites):
            row, worst = {site.width: 0.0}, 0.0
            for width in reversed(self.widths[site.id][:-1]):
                keep = [width if i == index else k for i, k in enumerate(dense.keep)]
                worst = max(worst, self._loss(Policy.of(anatomy, keep)) - dense_loss)
                row[width] = worst
            curves[site.id] = row
        return curves

    def _loss(self, policy: Policy) -> float:
        return -self.evaluator.measure(policy, self.basis).log_probability

    def flap(self) -> dict[SiteId, np.ndarray[Any, Any]]:
        """Score units as FLAP does, with the token weights that all methods have here."""
        loaded = self.evaluator.loaded
        batches = [probe(batch) for batch in encode(loaded.processor, self.evaluator.proxy)]
        statistics = survey(loaded, loaded.handles, batches, full=False)
        return {
            handle.site.id: unit_scores(loaded, handle, "flap", statistics[handle.site.id])
            for handle in loaded.handles
        }

    def switches(self, evaluations: int, seed: int) -> dict[Policy, float]:
        """Evolve one parent by level switches from the best affordable one-number policy."""
        anatomy, rng = self.evaluator.anatomy, np.random.default_rng([seed, 41])
        view = self.epochs.view_of(0)
        grid = Grid.of(view)
        parent = max(
            self.within(one_number(anatomy, self.widths)), key=lambda p: p.kept_share(anatomy)
        )
        qualities = self.qualities([parent])
        while len(qualities) < evaluations:
            children: dict[Policy, None] = {}
            for _ in range(20 * OFFSPRING):
                if len(children) >= min(OFFSPRING, evaluations - len(qualities)):
                    break
                genome = grid.genome(view.space.encode(parent))
                # The smaller of two draws, as EvoPress has it: few switches more often than many.
                for _ in range(int(rng.integers(1, MOST_SWITCHES + 1, size=2).min())):
                    genome = switch(genome, grid, rng)
                params = grid.params(repair(genome, grid, rng))
                child = view.space.decode(params, anatomy).policy
                if child not in qualities:
                    children[child] = None
            if not children:
                break
            qualities |= self.qualities([*children])
            parent = max(qualities, key=qualities.__getitem__)
        return qualities


def baselines(runner: StudyRunner, model: str, seed: int) -> Record:
    """Find and measure the policies that need no sampler."""
    with runner.opened(model, seed, FIXED) as epochs:
        rivals = Rivals(epochs)
        evaluator, widths = rivals.evaluator, rivals.widths
        anatomy = evaluator.anatomy
        entries: dict[str, Any] = {}

        def note(name: str, before: int, entry: Mapping[str, Any]) -> None:
            entries[name] = dict(entry) | {"evaluations": evaluator.evaluations - before}

        for name, grid in (("two numbers", two_numbers), ("one number", one_number)):
            before = evaluator.evaluations
            qualities = rivals.qualities(rivals.within(grid(anatomy, widths)))
            note(name, before, rivals.chosen(qualities))
        ranked = global_rank(anatomy, widths, rivals.flap(), rivals.costs, rivals.bound)
        note(BASELINES[2], evaluator.evaluations, rivals.examined(ranked))
        before = evaluator.evaluations
        curves = rivals.curves()
        for name, way in ((BASELINES[3], greedy), (BASELINES[4], additive)):
            policy = way(anatomy, widths, curves, rivals.costs, rivals.bound)
            note(name, before, rivals.examined(policy))
        before = evaluator.evaluations
        note(BASELINES[5], before, rivals.chosen(rivals.switches(epochs.spec.search.trials, seed)))
        dense = rivals.examined(Policy.dense(anatomy))
        return {"model": model, "seed": seed, "dense": dense, "rivals": entries}


def baselines_id(model: str, seed: int) -> RecordId:
    """Return the place of the record of `baselines`."""
    return RecordId("evolution", ("baselines", model, seed))


def timed_id(model: str, seed: int) -> RecordId:
    """Return the place of the record of the time that the choices take."""
    return RecordId("evolution", ("timed", model, seed))


def searches_of(form: Form) -> dict[str, str]:
    """Return the samplers; in the tiny form two."""
    return dict([*SEARCHES.items()][: form.pick(5, 5, 2)])


def gather(runner: StudyRunner) -> dict[str, list[Record]]:
    """Run or read all methods; return rows by method."""
    rows: dict[str, list[Record]] = {}
    for model, seed in pairs_of(runner.form):
        by_method: dict[str, Record] = {}
        for sampler, name in searches_of(runner.form).items():
            if study := runner.study(model, seed, case_of(sampler)):
                by_method[name] = study | {"one": study["chosen"]}
        measure = functools.partial(baselines, runner, model, seed)
        if record := runner.record(baselines_id(model, seed), measure):
            dense = record["dense"] | {"evaluations": 0}
            for name, one in (*record["rivals"].items(), ("dense", dense)):
                cost = {"evaluations": one["evaluations"], "search_cpu_s": None}
                by_method[name] = record | {"one": one} | cost
        widths = {name: row["one"][WIDTHS] for name, row in by_method.items() if name != "dense"}
        timed = runner.timed(timed_id(model, seed), model, seed, widths)
        for name, row in by_method.items():
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
            mean([value for (at, _), value in tests.items() if at == model]).text()
            for model in models
        ]
        cpu = [row["search_cpu_s"] for row in mine if row["search_cpu_s"] is not None]
        lines.append(
            [
                name,
                *each,
                ahead(tests, first).text("+") if name != "NSGA-II, ours" else "-",
                f"{np.mean([row['one'][KEEP_RATIO] for row in mine]):.3f}",
                f"{np.mean([row['one']['latency_ms'] for row in mine]):.1f}",
                mean(shares_of(mine)).text() if name != "dense" else "1",
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
`results/evolution.jsonl`, `results/studies.jsonl`.

Test accuracy on 1,000 questions over digit images that neither calibration nor search has seen,
means over draws (up to {seeds} a model); in brackets 95 % intervals (Student's t over draws;
the differences paired, over {pairs} pairs of model and draw). All have the same calibration,
projector as loaded, eta 0.02 and at most 22.5 % of the decoder's weights. Measured: the choices of
a draw, run whole, in turn with the dense model. Damage curves: what narrowing one site alone adds
to the cross-fitted loss on the proxy.

{markdown(head, lines)}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write the table."""
    form = begin(__doc__, arguments, two=True)
    runner, pairs = StudyRunner(form), pairs_of(form)
    places = [study_id(m, s, case_of(n)) for m, s in pairs for n in searches_of(form)]
    places += [place(*pair) for pair in pairs for place in (baselines_id, timed_id)]
    announce(runner.missing(places), form.pick(20, 15, 3))
    rows = gather(runner)
    origins = [row["provenance"] for records in rows.values() for row in records]
    publish(form, TITLE, section(rows, form.models), origins)


if __name__ == "__main__":
    main()
