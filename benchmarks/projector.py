"""Does training the projector inside the loop help? ``python benchmarks/projector.py``.

The same study without updates, with one update after the search, and with an update each epoch;
the search without compensation, as the method is published, with and without updates; and the best
policy that is uniform by kind, with and without the same training.

``--tiny`` does this in seconds and publishes nothing; ``--small`` in a minute or two.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from _baselines import Baselines
from _cases import DEFAULT, FIXED, Case, study_id
from _counting import evaluator_of
from _evidence import announce, pairs_of, parse_form, publish
from _fields import WIDTHS
from _means import by_model, by_pair, difference, label, markdown, mean
from _outcome import best, measure_choice, relative_hypervolume
from _records import RecordId
from _sentences import gains, paragraph, plural
from _studies import StudyRunner

from effllava_optuna.allocation import uniform_by_kind
from effllava_optuna.policy import Policy
from effllava_optuna.search.epochs.projector_round import training_batches
from effllava_optuna.training import ProjectorTrainingOptions, train_projector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _means import Rows
    from _records import Record

    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.training import ProjectorUpdate

TITLE = "Training the projector inside the loop"
UNIFORM, UNIFORM_TRAINED = "uniform", "uniform trained"
UNCOMPENSATED, UNCOMPENSATED_TRAINED = "uncompensated", "uncompensated trained"
VARIANTS = {
    "none": "no update",
    "after": "one update after the search",
    "each": "update each epoch (the default)",
    UNCOMPENSATED: "no compensation, no update",
    UNCOMPENSATED_TRAINED: "no compensation, update each epoch",
    UNIFORM: "uniform by kind, no update",
    UNIFORM_TRAINED: "uniform by kind, the same training",
}
_NO_FIT = "pruning.compensation='none'"
SEARCHED = {
    "none": FIXED,
    "each": DEFAULT,
    UNCOMPENSATED: Case(UNCOMPENSATED, (*FIXED.changes, _NO_FIT), "projector"),
    UNCOMPENSATED_TRAINED: Case("uncompensated-trained", (_NO_FIT,), "projector"),
}
_REFERENCES = {UNIFORM_TRAINED: UNIFORM, UNCOMPENSATED_TRAINED: UNCOMPENSATED}
_FIRST = ("none", UNIFORM)  # rows that have no reference


def train(
    session: SearchSession, policies: Sequence[Policy], options: ProjectorTrainingOptions
) -> ProjectorUpdate:
    """Train the projector as it was loaded for some policies."""
    evaluator = session.evaluator
    weight_state = session.epochs.epoch(0).weight_state
    return train_projector(
        evaluator.loaded, weight_state, policies, training_batches(evaluator), options
    )


def updates_after_search(runner: StudyRunner, model: str, seed: int) -> Record:
    """Train the projector for the front of a search without updates, and for uniform policies."""
    searched = runner.study(model, seed, FIXED)
    table = runner.config(model, seed, DEFAULT).projector
    options = ProjectorTrainingOptions(table.steps, table.every, table.learning_rate, table.kl)
    with runner.open(model, seed, FIXED) as session:
        evaluator, first = evaluator_of(session), session.epochs.epoch(0).weight_state
        front = [Policy.of(evaluator.structure, entry[WIDTHS]) for entry in searched["front"]]
        update = train(session, front[: table.elites], options)
        weight_state = first.with_projectors(update.projectors)
        points = [
            measure_choice(evaluator, policy, weight_state) | {"quality": entry["quality"]}
            for policy, entry in zip(front, searched["front"], strict=True)
        ]
        volume = relative_hypervolume(points, evaluator.calibration.reference)
        baselines = Baselines(session)
        grid = baselines.feasible(uniform_by_kind(evaluator.structure, baselines.widths))
        uniform = baselines.choose(baselines.qualities(grid))
        policy = Policy.of(evaluator.structure, uniform[WIDTHS])
        own = train(session, [policy], options)
        own_state = first.with_projectors(own.projectors)
        uniform_trained = measure_choice(evaluator, policy, own_state)
    return {
        "model": model,
        "seed": seed,
        "after": {"chosen": best(points), "volume": volume},
        UNIFORM: {"chosen": uniform},
        UNIFORM_TRAINED: {"chosen": uniform_trained},
        "grid": len(grid),
        "steps": [update.steps, own.steps],
        "projector_s": [update.seconds, own.seconds],
    }


def updates_id(model: str, seed: int) -> RecordId:
    """Return the id of the record of `updates_after_search`."""
    return RecordId("projector", ("updates", model, seed))


def gather(runner: StudyRunner) -> dict[str, list[Record]]:
    """Run or read all variants; return rows by variant."""
    rows: dict[str, list[Record]] = {}
    for model, seed in pairs_of(runner.form):
        variants = {name: runner.study(model, seed, case) for name, case in SEARCHED.items()}
        measure = functools.partial(updates_after_search, runner, model, seed)
        updates = runner.record(updates_id(model, seed), measure)
        if not (all(variants.values()) and updates):
            continue
        none, seconds = variants["none"], updates["projector_s"]
        search = {"evaluations": none["evaluations"], "search_cpu_s": none["search_cpu_s"]}
        grid = {"evaluations": updates["grid"], "search_cpu_s": 0.0}
        for name, cost, training_s in (
            ("after", search, seconds[0]),
            (UNIFORM, grid, 0.0),
            (UNIFORM_TRAINED, grid, seconds[1]),
        ):
            variants[name] = updates | updates[name] | cost
            variants[name]["search_cpu_s"] += training_s
        for name, row in variants.items():
            rows.setdefault(name, []).append(row)
    return rows


def summary(tests: Mapping[str, Mapping[Any, float]]) -> str:
    """Return the main figures, from test accuracies by variant and pair."""
    compared = [
        (VARIANTS[name], difference(tests[name], tests[_REFERENCES.get(name, "none")]))
        for name in ("each", "after", UNCOMPENSATED_TRAINED)
    ]
    return paragraph(f"""
        Without any update of the projector, the choice of the search has a test accuracy of
        {mean(list(tests["none"].values())).text()} ({plural(len(tests["none"]), "pair")} of model
        and draw). Gains over the same without an update: {gains(compared)}.""")


def section(rows: Mapping[str, Rows], models: Mapping[str, str]) -> str:
    """Format the page of the benchmark."""
    tests = {name: by_pair(records, "chosen", "test") for name, records in rows.items()}
    volumes = {
        name: by_pair(records, "volume")
        for name, records in rows.items()
        if not name.startswith(UNIFORM)
    }
    lines = []
    for name, title in VARIANTS.items():
        records, reference = rows[name], _REFERENCES.get(name, "none")
        volume, no_update = volumes.get(name, {}), volumes.get(reference, {})
        lines.append(
            [
                title,
                *by_model(tests[name], models),
                difference(tests[name], tests[reference]).text("+") if name not in _FIRST else "-",
                difference(volume, no_update).text("+") if volume and name != "none" else "-",
                f"{mean(list(volume.values())).value:.3f}" if volume else "-",
                f"{np.mean([row['chosen']['latency_ms'] for row in records]):.1f}",
                f"{np.mean([row['evaluations'] for row in records]):.0f}",
                f"{np.mean([row['search_cpu_s'] for row in records]):.0f}",
            ]
        )
    head = [
        "update", *(f"test, {label(path)}" for path in models.values()), "minus no update",
        "hypervolume minus that of no update", "hypervolume", "latency by the table, ms",
        "evaluations", "CPU s of search and training",
    ]  # fmt: skip
    steps = [step for row in rows["each"] for step in row["projector_steps"]]
    zero = sum(step == 0 for step in steps)
    return f"""{summary(tests)}

Generated by `python benchmarks/projector.py`; do not edit. Figures:
[projector](../results/projector.jsonl), [studies](../results/studies.jsonl).

Test accuracy of the choice on 1,000 questions; hypervolume of the finalists by test accuracy and
latency, as a share of the largest; means over draws with 95 % intervals (Student's t), differences
paired over {len(tests["none"])} pairs of model and draw. In {zero} of {len(steps)} updates the
held-out parts of the proxy chose to take no step at all; {np.mean(steps):.1f} steps on average.
"Minus no update": of uniform by kind and of the search without compensation, with training minus
without.

{markdown(head, lines)}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the missing records, and write the table."""
    form = parse_form(__doc__, arguments, two_models=True, draws=5)
    runner, pairs = StudyRunner(form), pairs_of(form)
    ids = [study_id(model, seed, case) for model, seed in pairs for case in SEARCHED.values()]
    ids += [updates_id(*pair) for pair in pairs]
    announce(runner.missing(ids), form.pick(35, 25, 3))
    rows = gather(runner)
    origins = [row["provenance"] for records in rows.values() for row in records]
    publish(form, TITLE, section(rows, form.models), origins)


if __name__ == "__main__":
    main()
