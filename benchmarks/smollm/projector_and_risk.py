"""What do projector training and structural risk change on a pretrained model?

``python benchmarks/smollm/projector_and_risk.py``.

The default search of ``smollm-vlm`` at a predicted speed-up of 2.2: with the projector trained in
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
from _evidence import announce
from _fields import KEEP_RATIO, WIDTHS
from _means import markdown
from _network_rows import accuracy_cell, gain_cell, gain_of, mean_cell
from _pretrained_form import MODEL, pretrained_form, publish_tables
from _pretrained_search import PretrainedDraw
from _records import RecordId
from _sentences import gains, paragraph, plural
from _studies import StudyRunner

from effllava_optuna.policy import Policy
from effllava_optuna.search.epochs.projector_round import training_batches
from effllava_optuna.training import ProjectorTrainingOptions, train_projector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from _evidence import Form
    from _records import Record

TITLE = "A pretrained model: projector, risk and samples"
QUESTION = "smollm_projector"
SPEEDUP = 2.2
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
# In the summary: searches, and what each differs in.
_QUOTED = {
    "projector trained in the loop": "a projector that is trained in the loop",
    "without structural risk": "no structural risk",
    "16 samples": "16 samples instead of 32",
    "no compensation, projector as it was loaded": "no compensation",
    "no compensation, projector trained in the loop": "the same with the projector trained",
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


def summary(of: Callable[[str], Mapping[int, Record]]) -> str:
    """Return the main figures, from the records of a search by draw."""
    compared = [
        (name, gain) for name in _QUOTED if (gain := gain_of(of(name), of(REFERENCE))).count
    ]
    differences = f" Differences to it: {gains(compared)}." if compared else ""
    return paragraph(f"""
        The default search at a predicted speed-up of {SPEEDUP} keeps an accuracy of
        {accuracy_cell(of(REFERENCE))} with the projector as it was loaded
        ({plural(len(of(REFERENCE)), "draw")}).{differences}""")


def section(records: Mapping[tuple[Any, ...], Record], form: Form) -> str:
    """Format the page of the benchmark."""

    def of(name: str) -> dict[int, Record]:
        return {seed: records[seed, name] for seed in range(form.seeds) if (seed, name) in records}

    lines = []
    for name in names_of(form):
        rows = of(name)
        if rows:
            steps = [str(step) for row in rows.values() for step in row["projector_steps"]]
            lines.append(
                [
                    name,
                    str(len(rows)),
                    accuracy_cell(rows),
                    "" if name == REFERENCE else gain_cell(rows, of(REFERENCE)),
                    ", ".join(steps) or "-",
                    *(mean_cell(rows, field) for field in ("measured", KEEP_RATIO)),
                ]
            )
    head = [
        "search", "draws", "accuracy", f"minus: {REFERENCE}", "projector steps chosen",
        "measured speed-up", "weights kept",
    ]  # fmt: skip
    return f"""{summary(of)}

Generated by `python benchmarks/smollm/projector_and_risk.py`; do not edit. Figures:
[results](../results/{QUESTION}.jsonl).

The default search of `smollm-vlm` at a predicted speed-up of {SPEEDUP}, the settings of
`benchmarks/smollm/tables.toml` (32 proxy samples, projector steps 0, 4 or 8 by cross-validation).
Accuracy on questions about pictures, chosen by validation among the finalists. Intervals are 95 %
(bootstrap over pictures), differences are paired by picture, over the draws that both have.

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
    publish_tables(runner, TITLE, ids, lambda records: section(records, form))


if __name__ == "__main__":
    main()
