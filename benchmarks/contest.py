"""Does the search beat the best two-number policy? ``python benchmarks/contest.py``.

One study of ``studies/quickstart.toml`` for each sampler and seed; the seed draws the samples,
too. Chosen policy and baseline keep at most the same share of the weights, are chosen in the same
way (proxy scores, then validation) and answer the same test questions. The baseline is measured
under the basis of the choice, and again under a projector of its own, trained as the study trains
its own.

Every study leaves a record in ``results/contest.jsonl``, and one that has a record is not run
again; a study that was interrupted is resumed. ``RESULTS.md`` is written from the records.
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from _fields import IMPORTANCE, KEEP_RATIO
from _records import add_records, read_records
from _results import HERE, RESULTS, provenance, put_section

from effllava_optuna.hooks import Training, train_projector
from effllava_optuna.objectives import units_of
from effllava_optuna.policy import Policy, bootstrap_interval
from effllava_optuna.study import loop, read_spec, storage
from effllava_optuna.tasks import Split

if TYPE_CHECKING:
    from _records import Record

    from effllava_optuna.study import Epochs
    from effllava_optuna.surgery import Basis

RECORDS = RESULTS / "contest.jsonl"  # keys: sampler, order, seed
SPEC = HERE.parent / "studies" / "quickstart.toml"
SAMPLERS = ("nsga2", "cma", "stock-nsga2", "tpe", "random")


def measure(epochs: Epochs) -> dict[str, Any]:
    """Return test accuracies with intervals, and the differences to the baselines."""
    bench = epochs.bench
    results = epochs.study.user_attrs[storage.RESULTS]
    chosen, baseline = results["chosen"], results["uniform2"]
    test = bench.asked(Split.TEST)
    basis = epochs.basis_of(chosen["epoch"])
    uniform2 = Policy.of(bench.anatomy, baseline["policy"])
    table = epochs.spec.projector
    update = train_projector(
        bench.loaded,
        bench.basis(),
        [uniform2],
        epochs.lessons(),
        Training(table.steps, table.every, table.learning_rate, table.kl),
    )

    def hits(policy: Policy, under: Basis) -> Any:
        return bench.final(policy, under, test).hit

    units = units_of(test)
    best = hits(Policy.of(bench.anatomy, chosen["policy"]), basis)
    rivals = {
        "uniform2": hits(uniform2, basis),
        "uniform2_dense_projector": hits(uniform2, bench.basis()),
        "uniform2_own_projector": hits(uniform2, bench.basis(update.projectors)),
    }
    return {
        "results": {key: results[key] for key in ("dense", "uniform", "uniform2", "chosen")},
        "own_projector_steps": update.steps,
        "chosen": {"test": float(best.mean()), "interval": bootstrap_interval(best, units)},
        **{
            name: {
                "test": float(rival.mean()),
                "interval": bootstrap_interval(rival, units),
                "difference": float((best - rival).mean()),
                "difference_interval": bootstrap_interval(best - rival, units, bounds=(-1.0, 1.0)),
            }
            for name, rival in rivals.items()
        },
    }


def label(sampler: str, order: str) -> str:
    """Return the sampler, and the order of units if it is not the default."""
    return sampler if order == read_spec(SPEC).pruning.order else f"{sampler}, {order}"


def run(sampler: str, order: str, seed: int, work: Path) -> Record:
    """Run or resume a study; ``work`` holds its database."""
    name = f"contest-{sampler}-{order}-{seed}"
    changes = (
        f"study.seed={seed}",
        f"study.name={name}",
        f"search.sampler={sampler}",
        f"pruning.order={order}",
    )
    spec = read_spec(SPEC, changes)
    file = work / f"{name}.db"
    url = f"sqlite:///{file}"
    if file.is_file():
        study = storage.open_study(storage.open_storage(url), spec.study.name)
        opened = loop.continued(study, url)
    else:
        work.mkdir(parents=True, exist_ok=True)
        opened = loop.begun(spec, url)
    started, origin = time.monotonic(), provenance()
    with opened as epochs:
        loop.search(epochs)
        loop.conclude(epochs)
        seconds = time.monotonic() - started
        trained = sum(attempt.user_attrs["seconds"] for attempt in epochs.ledger.epochs()[1:])
        return {
            "sampler": sampler,
            "seed": seed,
            "spec": spec.document(),
            "model": epochs.study.user_attrs[storage.MANIFEST],
            "seconds": round(seconds, 1),
            "projector_seconds": round(trained, 1),
            "hypervolume": _volumes(epochs),
            **measure(epochs),
            "provenance": origin,
        }


def _volumes(epochs: Epochs) -> list[float]:
    from effllava_optuna.report import document
    from effllava_optuna.study.facts import facts_of

    return list(document(facts_of(epochs.study))["hypervolume"])


def table(rows: list[Record]) -> str:
    """Write the rows as Markdown."""

    def cell(row: Record, name: str) -> str:
        low, high = row[name]["interval"]
        return f"{row[name]['test']:.3f} [{low:.3f}, {high:.3f}]"

    def ahead(row: Record, name: str) -> str:
        low, high = row[name]["difference_interval"]
        return f"{row[name]['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"

    lines = [
        "| sampler | seed | dense | two numbers, basis of the choice | two numbers, own projector "
        "| chosen | ahead, same basis | ahead, own projector | kept |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        dense, chosen = row["results"]["dense"], row["results"]["chosen"]
        lines.append(
            f"| {_label(row)} | {row['seed']} "
            f"| {dense['accuracy_test']:.3f} | {cell(row, 'uniform2')} "
            f"| {cell(row, 'uniform2_own_projector')} | **{cell(row, 'chosen')}** "
            f"| {ahead(row, 'uniform2')} | {ahead(row, 'uniform2_own_projector')} "
            f"| {chosen[KEEP_RATIO]:.3f} |"
        )
    return "\n".join(lines)


def summary(rows: list[Record]) -> str:
    """Summarize the rows of one sampler and order."""
    texts = []
    for name, label in (
        ("uniform2", "under the same basis"),
        ("uniform2_own_projector", "with a projector of its own"),
        ("uniform2_dense_projector", "with the dense projector"),
    ):
        ahead = np.array([row[name]["difference"] for row in rows])
        texts.append(
            f"- Against the best two-number policy {label}: ahead in {int((ahead > 0).sum())} of "
            f"{len(ahead)} seeds, by {ahead.mean():.3f} on average "
            + (
                f"(standard deviation {ahead.std(ddof=1):.3f})."
                if len(ahead) > 1
                else "(one seed)."
            )
        )
    ratio = [row["uniform2"]["test"] / row["results"]["dense"]["accuracy_test"] for row in rows]
    texts.append(
        f"- The two-number policy keeps {min(ratio):.3f} to {max(ratio):.3f} of the dense test "
        "accuracy at this budget."
    )
    gaps = [row["results"]["chosen"]["gap"] for row in rows]
    texts.append(
        f"- Proxy minus test of the chosen policy (cross-fitted): {np.mean(gaps):+.3f} on average."
    )
    return "\n".join(texts)


def _machine(rows: list[Record]) -> str:
    where = rows[0]["provenance"]
    versions = ", ".join(f"{name} {where[name]}" for name in ("torch", "transformers", "optuna"))
    seconds = sorted(row["seconds"] for row in rows)
    return (
        f"{where['cpu']}, threads: {rows[0]['model']['threads']}; {versions}; {where['date']}; "
        f"a study took {seconds[0]:.0f} to {seconds[-1]:.0f} s."
    )


def _label(row: Record) -> str:
    return label(row["sampler"], row["spec"]["pruning"][IMPORTANCE])


def write() -> None:
    """Write the section of ``RESULTS.md`` from all records."""
    rows = [*read_records(RECORDS).values()]
    if not rows:
        return
    rows.sort(key=lambda row: (SAMPLERS.index(row["sampler"]), _label(row), row["seed"]))
    search = rows[0]["spec"]["search"]
    summaries = "\n\n".join(
        f"{contender}:\n\n{summary([row for row in rows if _label(row) == contender])}"
        for contender in dict.fromkeys(map(_label, rows))
    )
    text = f"""Generated by `python benchmarks/contest.py`; do not edit. Figures:
[results](results/contest.jsonl).

The embedded digits model, 64 proxy samples, {search["epochs"]} epochs of
{search["generations"]} x {search["population"]} trials; at most {search[KEEP_RATIO]:.1%} of the
decoder's linear parameters are kept. Accuracy on 2,000 test questions over digit images that
neither training nor search has seen; intervals are 95 %, bootstrap over groups of four images,
paired for the differences. One small model: this says nothing about larger ones.

{table(rows)}

{summaries}

{_machine(rows)}
"""
    print(text)
    put_section("Search against two numbers", text)


def main() -> None:
    """Run the studies that have no record, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=["nsga2"])
    parser.add_argument("--order", default=read_spec(SPEC).pruning.order)
    parser.add_argument("--work", type=Path, default=HERE / "scratch")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for seed, sampler in product(range(arguments.seeds), arguments.samplers):
        key = (sampler, arguments.order, seed)
        if key not in read_records(RECORDS):
            print(f"{label(sampler, arguments.order)}, seed {seed} ...", flush=True)
            add_records(RECORDS, {key: run(*key, arguments.work)})
    write()


if __name__ == "__main__":
    main()
