"""Does training the projector inside the loop help? ``python benchmarks/projector.py``.

The same study without updates, with one update after the search, with an update each epoch, and
with one after which all units are ranked and fitted anew around the new projector; and the best
two-number policy with and without the same training. The package keeps the order of units for a
whole study: the search that does not is made here.

``--tiny`` does this in seconds and writes nothing; ``--small`` in a minute or two.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from _evidence import (
    DEFAULT,
    FIXED,
    Bench,
    Case,
    Lab,
    announce,
    begin,
    bench_of,
    best,
    examined,
    once_loaded,
    pairs_of,
    publish,
    study_name,
    volume,
)
from _means import ahead, by_pair, label, markdown, mean, shares_of
from evolution import Rivals

from effllava_optuna.baselines import two_numbers
from effllava_optuna.hooks import Training, train_projector
from effllava_optuna.objectives import folds_of, risk_table
from effllava_optuna.policy import Policy
from effllava_optuna.study.calibrating import probe
from effllava_optuna.study.evolution import Epochs, _restored
from effllava_optuna.surgery import WHOLE, Recipe, compensate, projecting
from effllava_optuna.tasks import encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from effllava_optuna.hooks import Update
    from effllava_optuna.study.bundle import Bundle
    from effllava_optuna.study.ledger import Publication
    from effllava_optuna.surgery import Basis

TITLE = "Training the projector inside the loop"
WAYS = {
    "none": "no update",
    "after": "one update after the search",
    "each": "update each epoch, order kept (the default)",
    "again": "update each epoch, units re-ordered and re-fitted",
    "two": "two numbers, no update",
    "two trained": "two numbers, the same training",
}


class Reordering(Epochs):
    """Epochs before which all units are ranked and fitted anew, around the new projector.

    The order and all fits are made around the projector that has seen the whole proxy: of a
    sample that is scored, the moments know a little, as its order does in any study.
    """

    def __init__(self, *told: Any, **named: Any) -> None:
        super().__init__(*told, **named)
        self._eras: dict[str, tuple[Bundle, str]] = {}  # by basis

    def basis(self, digest: str) -> Basis:
        """Give the basis that a trial's values belong to, the model arranged for it."""
        found = super().basis(digest)
        if digest in self._eras and self._eras[digest][0] is not self.bench.bundle:
            arrange(bench_of(self), *self._eras[digest])
        return found

    def _evolve(self, epoch: int) -> Publication:
        before = self.basis_of(epoch)
        self._bases[before.digest] = before  # that of epoch 0 would be made of the new bundle
        self._remember(before)
        made = super()._evolve(epoch)
        projectors = _restored(self.vault.get(str(made.artifact)))
        rank_anew(bench_of(self), projectors, epoch)
        after = self.bench.basis(projectors)
        self._remember(after)
        return replace(made, facts={**made.facts, "basis": after.digest})

    def _remember(self, basis: Basis) -> None:
        self._eras[basis.digest] = self.bench.bundle, self.bench.bundle_digest


def arrange(bench: Bench, bundle: Bundle, digest: str) -> None:
    """Put the units back where they were, and arrange them by another bundle."""
    bench.close()
    bench.loaded = once_loaded(bench.spec.model.path)
    bench.adopt(bundle, digest)


def rank_anew(bench: Bench, projectors: Sequence[Mapping[str, torch.Tensor]], epoch: int) -> None:
    """Rank and fit all units around a projector."""
    bundle, spec = bench.bundle, bench.spec
    bench.close()
    loaded = once_loaded(spec.model.path)
    folds = [
        [probe(batch) for batch in encode(loaded.processor, samples)]
        for samples in folds_of(bench.proxy, spec.pruning.folds)
    ]
    with projecting(loaded, projectors[WHOLE]):
        found = compensate(
            loaded, folds, bundle.widths, Recipe(spec.pruning.order, seed=spec.study.seed)
        )
    table = risk_table(
        loaded, found.order, bundle.widths, form=spec.quality.risk, refit=found.refits[WHOLE]
    )
    anew = replace(bundle, order=found.order, refits=found.refits, risk=table)
    arrange(bench, anew, f"{bench.bundle_digest}, anew after epoch {epoch}")


REORDERED = Case("re-ordered", epochs=Reordering)


def afterwards(lab: Lab, model: str, seed: int) -> dict[str, Any]:
    """Train the projector for the front of a search without updates, and for two numbers."""
    searched = lab.study(model, seed, FIXED)
    table = lab.spec(model, seed, DEFAULT).projector
    training = Training(table.steps, table.every, table.learning_rate, table.kl)
    with lab.opened(model, seed, FIXED) as epochs:
        bench = bench_of(epochs)
        front = [Policy.of(bench.anatomy, entry["keep"]) for entry in searched["front"]]

        def trained(policies: Sequence[Policy]) -> Update:
            return train_projector(
                bench.loaded, bench.basis(), policies, epochs.lessons(), training
            )

        def look(bench: Bench, basis: Basis) -> dict[str, Any]:
            found = [
                examined(bench, policy, basis) | {"quality": entry["quality"]}
                for policy, entry in zip(front, searched["front"], strict=True)
            ]
            return {"chosen": best(found), "volume": volume(found, bench.bundle.reference)}

        update = trained(front[: table.elites])
        after = look(bench, bench.basis(update.projectors))
        rivals = Rivals(epochs)
        grid = rivals.within(two_numbers(bench.anatomy, rivals.widths))
        two = rivals.chosen(rivals.qualities(grid))
        policy = Policy.of(bench.anatomy, two["keep"])
        own = trained([policy])
        two_trained = examined(bench, policy, bench.basis(own.projectors))
    return {
        "model": model,
        "seed": seed,
        "after": after,
        "two": {"chosen": two},
        "two trained": {"chosen": two_trained},
        "grid": len(grid),
        "steps": [update.steps, own.steps],
        "projector_s": [update.seconds, own.seconds],
    }


SEARCHED = {"none": FIXED, "each": DEFAULT, "again": REORDERED}


def gather(lab: Lab) -> dict[str, list[dict[str, Any]]]:
    """Run, or read, all that is compared; give rows by way."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for model, seed in pairs_of(lab.form):
        name = f"projector-{model}-{seed}"
        whole = {way: lab.study(model, seed, case) for way, case in SEARCHED.items()}
        found = lab.unit(name, functools.partial(afterwards, lab, model, seed))
        if not (all(whole.values()) and found):
            continue
        none, seconds = whole["none"], found["projector_s"]
        search = {"evaluations": none["evaluations"], "search_cpu_s": none["search_cpu_s"]}
        grid = {"evaluations": found["grid"], "search_cpu_s": 0.0}
        for way, spent, more in (
            ("after", search, seconds[0]), ("two", grid, 0.0), ("two trained", grid, seconds[1])
        ):  # fmt: skip
            whole[way] = found | found[way] | spent
            whole[way]["search_cpu_s"] += more
        keeps = {way: row["chosen"]["keep"] for way, row in whole.items()}
        timed = lab.timed(f"timed-projector-{model}-{seed}", model, seed, keeps)
        for way, row in whole.items():
            rows.setdefault(way, []).append(row | {"share": timed.get("shares", {}).get(way)})
    return rows


def section(rows: Mapping[str, Sequence[Mapping[str, Any]]], models: Mapping[str, str]) -> str:
    """Write the table."""
    tests = {way: by_pair(mine, "chosen", "test") for way, mine in rows.items()}
    volumes = {way: by_pair(mine, "volume") for way, mine in rows.items() if "two" not in way}
    lines = []
    for way, name in WAYS.items():
        mine, rival = rows[way], "two" if way.startswith("two") else "none"
        each = [
            mean([value for (at, _), value in tests[way].items() if at == model]).told()
            for model in models
        ]
        known = volumes.get(way)
        lines.append(
            [
                name,
                *each,
                ahead(tests[way], tests[rival]).told("+") if way != rival else "-",
                ahead(known, volumes["none"]).told("+") if known and way != "none" else "-",
                f"{mean(list(known.values())).value:.3f}" if known else "-",
                f"{np.mean([row['chosen']['latency_ms'] for row in mine]):.1f}",
                mean(shares_of(mine)).told(),
                f"{np.mean([row['evaluations'] for row in mine]):.0f}",
                f"{np.mean([row['search_cpu_s'] for row in mine]):.0f}",
            ]
        )
    head = [
        "update", *(f"test, {label(path)}" for path in models.values()), "minus no update",
        "hypervolume minus that of no update", "hypervolume", "latency by the table, ms",
        "measured, share of dense", "evaluations", "CPU s of search and training",
    ]  # fmt: skip
    steps = [step for row in rows["each"] for step in row["projector_steps"]]
    zero = sum(step == 0 for step in steps)
    return f"""Generated by `python benchmarks/projector.py`; do not edit. Figures:
`results/evidence`.

Test accuracy of the choice on 1,000 questions; hypervolume of the finalists by test accuracy and
latency, as a share of the whole; means over draws with 95 % intervals (Student's t), differences
paired over {len(tests["none"])} pairs of model and draw. In {zero} of {len(steps)} updates the
held-out parts of the proxy chose to take no step at all; {np.mean(steps):.1f} steps on average.
"Minus no update" is, of two numbers with training, minus two numbers without. The package keeps
one order for a whole study; the search that ranks and fits all units anew around each epoch's
projector is made by this script. Measured: the choices of a draw, run whole, in turn with the
dense model.

{markdown(head, lines)}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write the table."""
    form, _ = begin(__doc__, arguments, two=True)
    lab, pairs = Lab(form), pairs_of(form)
    names = [study_name(m, s, case) for m, s in pairs for case in SEARCHED.values()]
    names += [f"{kind}projector-{m}-{s}" for m, s in pairs for kind in ("", "timed-")]
    announce(lab.missing(names), form.pick(35, 25, 3))
    rows = gather(lab)
    origins = [row["provenance"] for mine in rows.values() for row in mine]
    publish(form, TITLE, section(rows, form.models), origins)


if __name__ == "__main__":
    main()
