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
from _cases import DEFAULT, FIXED, Case, study_id
from _evidence import announce, begin, pairs_of, publish
from _fields import WIDTHS
from _means import ahead, by_pair, label, markdown, mean, shares_of
from _outcome import best, examined, volume
from _records import RecordId
from _studies import StudyRunner, evaluator_of, once_loaded
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
    from _records import Record
    from _studies import CountingEvaluator

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
    """Epochs before which all units are ranked and fitted again around the new projector.

    The new projector has been trained on the whole proxy, so that the fits depend a little on the
    samples that they score. The order does so in every study.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bundles: dict[str, tuple[Bundle, str]] = {}  # with their digests, by basis

    def basis(self, digest: str) -> Basis:
        """Return the basis that a trial was measured under, and arrange the model for it."""
        basis = super().basis(digest)
        if digest in self._bundles and self._bundles[digest][0] is not self.bench.bundle:
            arrange(evaluator_of(self), *self._bundles[digest])
        return basis

    def _evolve(self, epoch: int) -> Publication:
        before = self.basis_of(epoch)
        self._bases[before.digest] = before  # that of epoch 0 would be made of the new bundle
        self._remember(before)
        publication = super()._evolve(epoch)
        projectors = _restored(self.vault.get(str(publication.artifact)))
        rank_again(evaluator_of(self), projectors, epoch)
        after = self.bench.basis(projectors)
        self._remember(after)
        return replace(publication, facts={**publication.facts, "basis": after.digest})

    def _remember(self, basis: Basis) -> None:
        self._bundles[basis.digest] = self.bench.bundle, self.bench.bundle_digest


def arrange(evaluator: CountingEvaluator, bundle: Bundle, digest: str) -> None:
    """Restore the order of the units, and arrange them by another bundle."""
    evaluator.close()
    evaluator.loaded = once_loaded(evaluator.spec.model.path)
    evaluator.adopt(bundle, digest)


def rank_again(
    evaluator: CountingEvaluator, projectors: Sequence[Mapping[str, torch.Tensor]], epoch: int
) -> None:
    """Rank and fit all units around a projector."""
    bundle, spec = evaluator.bundle, evaluator.spec
    evaluator.close()
    loaded = once_loaded(spec.model.path)
    folds = [
        [probe(batch) for batch in encode(loaded.processor, samples)]
        for samples in folds_of(evaluator.proxy, spec.pruning.folds)
    ]
    with projecting(loaded, projectors[WHOLE]):
        fitted = compensate(
            loaded, folds, bundle.widths, Recipe(spec.pruning.order, seed=spec.study.seed)
        )
    table = risk_table(
        loaded, fitted.order, bundle.widths, form=spec.quality.risk, refit=fitted.refits[WHOLE]
    )
    again = replace(bundle, order=fitted.order, refits=fitted.refits, risk=table)
    arrange(evaluator, again, f"{evaluator.bundle_digest}, anew after epoch {epoch}")


REORDERED = Case("re-ordered", question="projector", epochs=Reordering)


def afterwards(runner: StudyRunner, model: str, seed: int) -> Record:
    """Train the projector for the front of a search without updates, and for two numbers."""
    searched = runner.study(model, seed, FIXED)
    table = runner.spec(model, seed, DEFAULT).projector
    training = Training(table.steps, table.every, table.learning_rate, table.kl)
    with runner.opened(model, seed, FIXED) as epochs:
        evaluator = evaluator_of(epochs)
        front = [Policy.of(evaluator.anatomy, entry[WIDTHS]) for entry in searched["front"]]

        def trained(policies: Sequence[Policy]) -> Update:
            return train_projector(
                evaluator.loaded, evaluator.basis(), policies, epochs.lessons(), training
            )

        update = trained(front[: table.elites])
        basis = evaluator.basis(update.projectors)
        points = [
            examined(evaluator, policy, basis) | {"quality": entry["quality"]}
            for policy, entry in zip(front, searched["front"], strict=True)
        ]
        after = {"chosen": best(points), "volume": volume(points, evaluator.bundle.reference)}
        rivals = Rivals(epochs)
        grid = rivals.within(two_numbers(evaluator.anatomy, rivals.widths))
        two = rivals.chosen(rivals.qualities(grid))
        policy = Policy.of(evaluator.anatomy, two[WIDTHS])
        own = trained([policy])
        two_trained = examined(evaluator, policy, evaluator.basis(own.projectors))
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


def updates_id(model: str, seed: int) -> RecordId:
    """Return the place of the record of `afterwards`."""
    return RecordId("projector", ("updates", model, seed))


def timed_id(model: str, seed: int) -> RecordId:
    """Return the place of the record of the time that the choices take."""
    return RecordId("projector", ("timed", model, seed))


def gather(runner: StudyRunner) -> dict[str, list[Record]]:
    """Run or read all ways to train; return rows by way."""
    rows: dict[str, list[Record]] = {}
    for model, seed in pairs_of(runner.form):
        by_way = {way: runner.study(model, seed, case) for way, case in SEARCHED.items()}
        measure = functools.partial(afterwards, runner, model, seed)
        updates = runner.record(updates_id(model, seed), measure)
        if not (all(by_way.values()) and updates):
            continue
        none, seconds = by_way["none"], updates["projector_s"]
        search = {"evaluations": none["evaluations"], "search_cpu_s": none["search_cpu_s"]}
        grid = {"evaluations": updates["grid"], "search_cpu_s": 0.0}
        for way, cost, training_s in (
            ("after", search, seconds[0]), ("two", grid, 0.0), ("two trained", grid, seconds[1])
        ):  # fmt: skip
            by_way[way] = updates | updates[way] | cost
            by_way[way]["search_cpu_s"] += training_s
        widths = {way: row["chosen"][WIDTHS] for way, row in by_way.items()}
        timed = runner.timed(timed_id(model, seed), model, seed, widths)
        for way, row in by_way.items():
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
            mean([value for (at, _), value in tests[way].items() if at == model]).text()
            for model in models
        ]
        known = volumes.get(way)
        lines.append(
            [
                name,
                *each,
                ahead(tests[way], tests[rival]).text("+") if way != rival else "-",
                ahead(known, volumes["none"]).text("+") if known and way != "none" else "-",
                f"{mean(list(known.values())).value:.3f}" if known else "-",
                f"{np.mean([row['chosen']['latency_ms'] for row in mine]):.1f}",
                mean(shares_of(mine)).text(),
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
`results/projector.jsonl`, `results/studies.jsonl`.

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
    form = begin(__doc__, arguments, two=True)
    runner, pairs = StudyRunner(form), pairs_of(form)
    places = [study_id(m, s, case) for m, s in pairs for case in SEARCHED.values()]
    places += [place(*pair) for pair in pairs for place in (updates_id, timed_id)]
    announce(runner.missing(places), form.pick(35, 25, 3))
    rows = gather(runner)
    origins = [row["provenance"] for records in rows.values() for row in records]
    publish(form, TITLE, section(rows, form.models), origins)


if __name__ == "__main__":
    main()
