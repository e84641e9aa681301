"""What do projector training and structural risk change on a pretrained model?

``python benchmarks/smollm/projector_and_risk.py``.

The default search of ``smollm-vlm`` at a predicted speed-up of 2.5: with the projector trained in
the loop, once for the chosen policy, and not at all, each with and without compensation; without
the structural-risk term; and with other numbers of calibration samples. Every search chooses by
validation among its finalists.

Every measurement leaves a record in ``results/smollm_projector.jsonl``, and is not repeated if it
has one. ``--tiny`` measures one search, and publishes nothing.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import torch
from _cases import Case
from _evidence import announce, publish
from _fields import KEEP_RATIO, WIDTHS
from _means import markdown
from _network_rows import accuracy_cell, gain_cell, mean_cell
from _pretrained_form import MODEL, pretrained_form
from _pretrained_search import PretrainedDraw
from _records import RecordId
from _studies import StudyRunner

from effllava_optuna.policy import Policy
from effllava_optuna.search.epochs.projector_round import training_batches
from effllava_optuna.training import ProjectorTrainingOptions, train_projector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _evidence import Form
    from _records import Record

TITLE = "A pretrained model: projector, risk and samples"
QUESTION = "smollm_projector"
SPEEDUP = 2.5
FIXED = ("projector.steps=0",)
UNCOMPENSATED = ("pruning.compensation='none'",)
REFERENCE = "projector as it was loaded"
SEARCHES = {
    REFERENCE: FIXED,
    "projector trained in the loop": (),
    "no compensation, projector as it was loaded": (*FIXED, *UNCOMPENSATED),
    "no compensation, projector trained in the loop": UNCOMPENSATED,
    "without structural risk": (*FIXED, "quality.eta=0.0"),
    "16 samples": (*FIXED, "task.proxy=16"),
    "64 samples": (*FIXED, "task.proxy=64"),
    "128 samples": (*FIXED, "task.proxy=128"),
}
# Trained for the choice of another search.
AFTERWARDS = {
    "projector trained once, for the choice": REFERENCE,
    "no compensation, projector trained once, for the choice": (
        "no compensation, projector as it was loaded"
    ),
}
_SECONDS = 700.0  # of one core, for a record


def record_id(seed: int, name: str) -> RecordId:
    """Return the id of a record."""
    return RecordId(QUESTION, ("search", seed, name))


def case_of(name: str) -> Case:
    """Return the study of a search."""
    return Case(name, (f"search.speedup={SPEEDUP}", *SEARCHES[name]), QUESTION)


def trained_afterwards(draw: PretrainedDraw, name: str) -> dict[str, Any]:
    """Train the projector for the choice of a search, as a study does between two epochs."""
    source = AFTERWARDS[name]
    searched = draw.runner.record(record_id(draw.seed, source), dict)
    with draw.runner.open(MODEL, draw.seed, case_of(source)) as session:
        evaluator, first = session.evaluator, session.epochs.epoch(0).weight_state
        policy = Policy.of(evaluator.structure, searched[WIDTHS])
        training = draw.runner.config(MODEL, draw.seed).projector
        options = ProjectorTrainingOptions(
            training.steps, training.every, training.learning_rate, training.kl
        )
        update = train_projector(
            evaluator.loaded, first, [policy], training_batches(evaluator), options
        )
        state = first.with_projectors(update.projectors)
        return draw.policy_figures(session, policy, state) | {"projector_steps": [update.steps]}


def names_of(form: Form) -> list[str]:
    """Return what is measured, in the order of the measurements."""
    names = [*[*SEARCHES][:4], *AFTERWARDS, *[*SEARCHES][4:]]
    return names[: form.pick(len(names), 2, 1)]


def section(records: Mapping[tuple[Any, ...], Record], form: Form) -> str:
    """Format the section of ``RESULTS.md``."""

    def paired(name: str, other: str) -> str:
        keys = [
            seed for seed in range(form.seeds) if {(seed, name), (seed, other)} <= records.keys()
        ]
        return gain_cell(
            [records[seed, name] for seed in keys], [records[seed, other] for seed in keys]
        )

    lines = []
    for name in names_of(form):
        rows = [records[seed, name] for seed in range(form.seeds) if (seed, name) in records]
        if rows:
            steps = [str(step) for row in rows for step in row["projector_steps"]]
            lines.append(
                [
                    name,
                    str(len(rows)),
                    accuracy_cell(rows),
                    "" if name == REFERENCE else paired(name, REFERENCE),
                    ", ".join(steps) or "-",
                    *(mean_cell(rows, field) for field in ("measured", KEEP_RATIO)),
                ]
            )
    head = [
        "search", "draws", "accuracy", f"minus: {REFERENCE}", "projector steps chosen",
        "measured speed-up", "weights kept",
    ]  # fmt: skip
    return f"""Generated by `python benchmarks/smollm/projector_and_risk.py`; do not edit. Figures:
[results](results/{QUESTION}.jsonl).

The default search of `smollm-vlm` at a predicted speed-up of {SPEEDUP}, the settings of
`benchmarks/smollm/tables.toml` (32 proxy samples, projector steps 0, 4 or 8 by cross-validation).
Accuracy on questions about pictures, chosen by validation among the finalists. Intervals are 95 %
(bootstrap over pictures), differences are paired by picture.

{markdown(head, lines)}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has no record, and write the section."""
    form = pretrained_form(__doc__, arguments)
    torch.set_num_threads(1)
    runner, names = StudyRunner(form), names_of(form)
    ids = [record_id(seed, name) for seed in range(form.seeds) for name in names]
    announce(runner.missing(ids), _SECONDS)
    for seed in range(form.seeds) if not form.report else ():
        draw = PretrainedDraw(runner, seed)
        for name in names:
            measure = (
                partial(draw.searched, case_of(name))
                if name in SEARCHES
                else partial(trained_afterwards, draw, name)
            )
            runner.record(record_id(seed, name), measure)
    records = {
        each.key[1:]: runner.record(each, dict) for each in ids if not runner.missing([each])
    }
    origins = [record["provenance"] for record in records.values()]
    publish(form, TITLE, section(records, form), origins)


if __name__ == "__main__":
    main()
