"""Does the search beat uniform policies? ``python benchmarks/search_vs_uniform.py``.

One study of ``studies/quickstart.toml`` for each seed, which draws the samples as well, and one of
the command ``allocate``: dynamic programming over residual curves. The chosen policy and the
baseline keep at most the same share of the weights, are chosen in the same way (proxy scores, then
validation) and are scored on the same test questions. The baseline is measured under the weight
state of the choice, and again with a projector that is trained for it as the study trains its own.

Every study leaves a record in ``results/search_vs_uniform.jsonl``, and a study that has a record
is not run again; a study that was interrupted is resumed. Its page is written from the
records.
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from _fields import KEEP_RATIO
from _means import markdown, mean
from _pages import put_page
from _records import add_records, read_records
from _results import HERE, RESULTS, provenance
from _sentences import paragraph, plural, value_range

from effllava_optuna.policy import Policy, bootstrap_interval
from effllava_optuna.report import study_document
from effllava_optuna.search.allocation_study import sized_for, without_search
from effllava_optuna.search.epochs.projector_round import training_batches
from effllava_optuna.search.runner import begin, conclude, resume, search
from effllava_optuna.storage import names
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.studies import open_study
from effllava_optuna.storage.study_facts import read_study_facts
from effllava_optuna.study import load_config
from effllava_optuna.tasks import Split
from effllava_optuna.training import ProjectorTrainingOptions, train_projector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _records import Record

    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.surgery import WeightState

TITLE = "Search against uniform by kind"
RECORDS = RESULTS / "search_vs_uniform.jsonl"  # keys: sampler, seed
CONFIG = HERE.parent / "studies" / "quickstart.toml"
SAMPLERS = ("nsga2", "allocation")
TABLES = ("task", "pruning", "quality", "latency", "search", "projector", "report")
BASELINE = "uniform_by_kind"  # under the weight state of the choice
DENSE_PROJECTOR = "uniform_by_kind_dense_projector"
OWN_PROJECTOR = "uniform_by_kind_own_projector"


def measure(session: SearchSession) -> dict[str, Any]:
    """Return test accuracies with intervals, and the differences to the baselines."""
    evaluator, first = session.evaluator, session.epochs.epoch(0).weight_state
    results = session.study.user_attrs[names.RESULTS]
    chosen, baseline = results["chosen"], results["uniform_by_kind"]
    test = evaluator.split(evaluator.inputs.task.samples(Split.TEST))
    uniform = Policy.of(evaluator.structure, baseline["policy"])
    table = session.config.projector
    options = ProjectorTrainingOptions(table.steps, table.every, table.learning_rate, table.kl)
    update = train_projector(
        evaluator.loaded, first, [uniform], training_batches(evaluator), options
    )

    def hits(policy: Policy, weight_state: WeightState) -> Any:
        return evaluator.score(policy, weight_state, test).hit

    groups = test.groups
    weight_state = session.epochs.epoch(chosen["epoch"]).weight_state
    chosen_hits = hits(Policy.of(evaluator.structure, chosen["policy"]), weight_state)
    baselines = {
        BASELINE: hits(uniform, weight_state),
        DENSE_PROJECTOR: hits(uniform, first),
        OWN_PROJECTOR: hits(uniform, first.with_projectors(update.projectors)),
    }
    return {
        "results": {
            key: results[key] for key in ("dense", "uniform", "uniform_by_kind", "chosen")
        },
        "own_projector_steps": update.steps,
        "chosen": {
            "test": float(chosen_hits.mean()),
            "interval": bootstrap_interval(chosen_hits, groups),
        },
        **{
            name: {
                "test": float(baseline_hits.mean()),
                "interval": bootstrap_interval(baseline_hits, groups),
                "difference": float((chosen_hits - baseline_hits).mean()),
                "difference_interval": bootstrap_interval(
                    chosen_hits - baseline_hits, groups, bounds=(-1.0, 1.0)
                ),
            }
            for name, baseline_hits in baselines.items()
        },
    }


def run(sampler: str, seed: int, work: Path) -> Record:
    """Run or resume a study; ``work`` holds its database."""
    name = f"search-vs-uniform-{sampler}-{seed}"
    config = load_config(CONFIG, (f"study.seed={seed}", f"study.name={name}"))
    allocates = sampler == "allocation"
    if allocates:
        config = without_search(config)
    file = work / f"{name}.db"
    url = f"sqlite:///{file}"
    if file.is_file():
        opened = resume(open_study(open_storage(url), config.study.name), url)
    else:
        work.mkdir(parents=True, exist_ok=True)
        opened = begin(config, url, sized_for=sized_for if allocates else None)
    started, origin = time.monotonic(), provenance()
    with opened as session:
        search(session)
        conclude(session)
        seconds = time.monotonic() - started
        updates = session.epochs.control_study.published_epochs()[1:]
        projector_seconds = sum(update.user_attrs["seconds"] for update in updates)
        return {
            "sampler": sampler,
            "seed": seed,
            "config": {table: config.document()[table] for table in TABLES},
            "model": session.study.user_attrs[names.MANIFEST],
            "seconds": round(seconds, 1),
            "projector_seconds": round(projector_seconds, 1),
            "hypervolume": list(study_document(read_study_facts(session.study))["hypervolume"]),
            **measure(session),
            "provenance": origin,
        }


def table(rows: Sequence[Record]) -> str:
    """Format a row for each study."""

    def accuracy(row: Record, name: str) -> str:
        low, high = row[name]["interval"]
        return f"{row[name]['test']:.3f} [{low:.3f}, {high:.3f}]"

    def gain(row: Record, name: str) -> str:
        low, high = row[name]["difference_interval"]
        return f"{row[name]['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"

    head = [
        "sampler", "seed", "dense", "uniform by kind, weight state of the choice",
        "uniform by kind, own projector", "chosen", "gain, same weight state",
        "gain, own projector", "keep ratio",
    ]  # fmt: skip
    lines = []
    for row in rows:
        dense, chosen = row["results"]["dense"], row["results"]["chosen"]
        lines.append(
            [
                row["sampler"],
                str(row["seed"]),
                f"{dense['accuracy_test']:.3f}",
                accuracy(row, BASELINE),
                accuracy(row, OWN_PROJECTOR),
                f"**{accuracy(row, 'chosen')}**",
                gain(row, BASELINE),
                gain(row, OWN_PROJECTOR),
                f"{chosen[KEEP_RATIO]:.3f}",
            ]
        )
    return markdown(head, lines)


def comparisons(rows: Sequence[Record]) -> str:
    """Format the comparisons with uniform policies as a list."""
    items = []
    for name, condition in (
        (BASELINE, "under the same weight state"),
        (OWN_PROJECTOR, "with a projector of its own"),
        (DENSE_PROJECTOR, "with the dense projector"),
    ):
        gains = np.array([row[name]["difference"] for row in rows])
        spread = f"standard deviation {gains.std(ddof=1):.3f}" if len(gains) > 1 else "one seed"
        items.append(
            f"- Against the best policy that is uniform by kind {condition}: better in "
            f"{int((gains > 0).sum())} of {len(gains)} seeds, by {gains.mean():.3f} on average "
            f"({spread})."
        )
    shares = [row[BASELINE]["test"] / row["results"]["dense"]["accuracy_test"] for row in rows]
    items.append(
        f"- Uniform by kind keeps {min(shares):.3f} to {max(shares):.3f} of the dense test "
        "accuracy at this budget."
    )
    gaps = [row["results"]["chosen"]["gap"] for row in rows]
    items.append(
        f"- Proxy minus test of the chosen policy (cross-fitted): {np.mean(gaps):+.3f} on average."
    )
    return "\n".join(items)


def _machine(rows: Sequence[Record]) -> str:
    origin = rows[0]["provenance"]
    versions = ", ".join(f"{name} {origin[name]}" for name in ("torch", "transformers", "optuna"))
    seconds = ", ".join(
        f"{value_range(times, '.0f')} s ({sampler})"
        for sampler in SAMPLERS
        if (times := [row["seconds"] for row in rows if row["sampler"] == sampler])
    )
    return (
        f"{origin['cpu']}, threads: {rows[0]['model']['threads']}; {versions}; {origin['date']}; "
        f"a study took {seconds}."
    )


def summary(rows: Sequence[Record]) -> str:
    """Return the main figures."""
    names = {"nsga2": "The choice of the default search", "allocation": "That of `allocate`"}
    sentences = []
    for sampler, name in names.items():
        of_sampler = [row for row in rows if row["sampler"] == sampler]
        if of_sampler:
            gain = mean([row[BASELINE]["difference"] for row in of_sampler])
            tests = mean([row["chosen"]["test"] for row in of_sampler])
            sentences.append(
                f"{name} has a test accuracy of {tests.text()}, {gain.text('+')} more than "
                f"the best that is uniform by kind ({plural(len(of_sampler), 'seed')})."
            )
    return paragraph(" ".join(sentences))


def write_section() -> None:
    """Write the page of the benchmark from all records."""
    rows = [*read_records(RECORDS).values()]
    if not rows:
        return
    rows.sort(key=lambda row: (SAMPLERS.index(row["sampler"]), row["seed"]))
    sizes = rows[0]["config"]["search"]
    summaries = "\n\n".join(
        f"{name}:\n\n{comparisons([row for row in rows if row['sampler'] == name])}"
        for name in dict.fromkeys(row["sampler"] for row in rows)
    )
    text = f"""{summary(rows)}

Generated by `python benchmarks/search_vs_uniform.py`; do not edit. Figures:
[results](../results/search_vs_uniform.jsonl).

The embedded digits model, 64 proxy samples, {sizes["epochs"]} epochs of
{sizes["generations"]} x {sizes["population"]} trials, or one generation of `allocate`; at most
{sizes[KEEP_RATIO]:.1%} of the decoder's linear parameters are kept. Accuracy on 2,000 test
questions about digit images that neither training nor search has seen; intervals are 95 %,
bootstrap over groups of four images, paired for the differences. One small model: this says
nothing about larger ones.

{table(rows)}

{summaries}

{_machine(rows)}
"""
    print(text)
    put_page(TITLE, text)


def main() -> None:
    """Run the studies that have no record, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=HERE / "scratch")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for seed, sampler in product(range(options.seeds), SAMPLERS):
        key = (sampler, seed)
        if key not in read_records(RECORDS):
            print(f"{sampler}, seed {seed} ...", flush=True)
            add_records(RECORDS, {key: run(*key, options.work)})
    write_section()


if __name__ == "__main__":
    main()
